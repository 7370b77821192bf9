"""What the scripts in recipes/ read: by the script's name, the dataclasses of its recipes."""

from trl import ModelConfig

from trl_r1zero.recipe.instruction_arguments import InstructionArguments
from trl_r1zero.recipe.preference_arguments import PreferenceArguments
from trl_r1zero.recipe.task_arguments import TaskArguments
from trl_r1zero.recipe.trace_arguments import TraceArguments
from trl_r1zero.trainers import (
    ExpertIterationConfig,
    InstructionTuningConfig,
    R1ZeroDPOConfig,
    R1ZeroGRPOConfig,
    R1ZeroSFTConfig,
)

METHODS: dict[str, tuple[type, ...]] = {
    "grpo": (R1ZeroGRPOConfig, TaskArguments, ModelConfig),
    "sft": (R1ZeroSFTConfig, TraceArguments, ModelConfig),
    "expert_iteration": (ExpertIterationConfig, TaskArguments, ModelConfig),
    "instruction_tuning": (InstructionTuningConfig, InstructionArguments, ModelConfig),
    "dpo": (R1ZeroDPOConfig, PreferenceArguments, ModelConfig),
}
