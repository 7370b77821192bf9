"""A process uses one GPU of those that it sees, whatever the trainer."""

import pytest
from transformers import TrainingArguments

from trl_r1zero.trainers import (
    ExpertIterationConfig,
    InstructionTuningConfig,
    R1ZeroDPOConfig,
    R1ZeroGRPOConfig,
    R1ZeroSFTConfig,
)

CONFIGS = (
    R1ZeroGRPOConfig,
    R1ZeroSFTConfig,
    ExpertIterationConfig,
    R1ZeroDPOConfig,
    InstructionTuningConfig,
)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("in_sight", [0, 1, 2])
def test_no_config_wraps_the_model_for_several_gpus(config, in_sight, tmp_path, monkeypatch):
    """transformers does so where `n_gpu` is above 1; the GPUs here are only said to be there."""
    set_up = TrainingArguments._setup_devices.func

    def sees_gpus(self):
        device = set_up(self)
        self._n_gpu = in_sight  # what transformers takes from torch.cuda.device_count()
        return device

    monkeypatch.setattr(TrainingArguments._setup_devices, "func", sees_gpus)
    args = config(output_dir=str(tmp_path))
    assert args.device.type == "cpu"  # the property has run; asking again must change nothing
    assert args.n_gpu == min(in_sight, 1)
    assert args.train_batch_size == args.per_device_train_batch_size
