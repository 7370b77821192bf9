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

# Public name -> the module that defines it.
_EXPORTS = {
    "ExpertIterationConfig": "epoch_configs",
    "ExpertIterationTrainer": "expert_iteration_trainer",
    "InstructionTuningConfig": "instruction_tuning",
    "R1ZeroDPOConfig": "epoch_configs",
    "R1ZeroDPOTrainer": "dpo_trainer",
    "R1ZeroGRPOConfig": "grpo_config",
    "R1ZeroGRPOTrainer": "grpo_trainer",
    "R1ZeroSFTConfig": "epoch_configs",
    "R1ZeroSFTTrainer": "sft_trainer",
    "TRLReward": "rewards",
    "make_instruction_tuning_trainer": "instruction_tuning",
}
__all__ = [*_EXPORTS, "read_metrics"]
__getattr__ = lazy_names(__name__, _EXPORTS)
