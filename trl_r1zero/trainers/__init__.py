"""Trainers on TRL's, with all checks of their settings in the configs."""

from .dpo_config import R1ZeroDPOConfig
from .dpo_trainer import R1ZeroDPOTrainer
from .expert_iteration_trainer import ExpertIterationTrainer
from .grpo_config import R1ZeroGRPOConfig
from .grpo_trainer import R1ZeroGRPOTrainer
from .instruction_tuning import InstructionTuningConfig, make_instruction_tuning_trainer
from .rewards import TRLReward
from .run_folder import read_metrics
from .sft_config import ExpertIterationConfig, R1ZeroSFTConfig
from .sft_trainer import R1ZeroSFTTrainer

__all__ = [
    "ExpertIterationConfig",
    "ExpertIterationTrainer",
    "InstructionTuningConfig",
    "R1ZeroDPOConfig",
    "R1ZeroDPOTrainer",
    "R1ZeroGRPOConfig",
    "R1ZeroGRPOTrainer",
    "R1ZeroSFTConfig",
    "R1ZeroSFTTrainer",
    "TRLReward",
    "make_instruction_tuning_trainer",
    "read_metrics",
]
