"""Trainers on TRL's, with all checks of their settings in the configs."""

from .grpo_config import R1ZeroGRPOConfig
from .grpo_trainer import R1ZeroGRPOTrainer
from .rewards import TRLReward
from .run_folder import read_metrics

__all__ = ["R1ZeroGRPOConfig", "R1ZeroGRPOTrainer", "TRLReward", "read_metrics"]
