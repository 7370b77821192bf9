"""Trainers on TRL's, with all checks of their settings in the configs."""

from typing import TYPE_CHECKING

from trl_r1zero.common.lazy import lazy_names
from trl_r1zero.common.run_files import read_metrics

if TYPE_CHECKING:
    from .dpo_trainer import R1ZeroDPOTrainer
    from .epoch_configs import ExpertIterationConfig, R1ZeroDPOConfig, R1ZeroSFTConfig
    from .expert_iteration_trainer import ExpertIterationTrainer
    from .grpo_config import R1ZeroGRPOConfig
    from .grpo_trainer import R1ZeroGRPOTrainer
    from .instruction_tuning import InstructionTuningConfig, make_instruction_tuning_trainer
    from .rewards import TRLReward
    from .sft_trainer import R1ZeroSFTTrainer

_NAMES, __getattr__ = lazy_names(
    __name__,
    {
        "epoch_configs": "ExpertIterationConfig R1ZeroDPOConfig R1ZeroSFTConfig",
        "expert_iteration_trainer": "ExpertIterationTrainer",
        "instruction_tuning": "InstructionTuningConfig make_instruction_tuning_trainer",
        "dpo_trainer": "R1ZeroDPOTrainer",
        "grpo_config": "R1ZeroGRPOConfig",
        "grpo_trainer": "R1ZeroGRPOTrainer",
        "sft_trainer": "R1ZeroSFTTrainer",
        "rewards": "TRLReward",
    },
)
__all__ = [*_NAMES, "read_metrics"]
