"""Where transformers cannot sample: weights that every process has to gather at each token."""

from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType

from trl_r1zero.trainers.sampling import check_sharding


def accelerator(kind: DistributedType, processes: int = 2, zero_stage: int = 0) -> SimpleNamespace:
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=zero_stage))
    return SimpleNamespace(distributed_type=kind, num_processes=processes, state=state)


def test_sharded_weights_are_refused():
    with pytest.raises(ValueError, match=r"FSDP shares out the weights: .* set use_vllm to true"):
        check_sharding(accelerator(DistributedType.FSDP), True)
    with pytest.raises(ValueError, match=r"ZeRO-3 .* or set ds3_gather_for_generation to true"):
        check_sharding(accelerator(DistributedType.DEEPSPEED, zero_stage=3), False)


def test_whole_weights_are_not():
    check_sharding(accelerator(DistributedType.MULTI_GPU), False)
    check_sharding(accelerator(DistributedType.FSDP, processes=1), True)
    check_sharding(accelerator(DistributedType.DEEPSPEED, zero_stage=3), True)
    check_sharding(accelerator(DistributedType.DEEPSPEED, zero_stage=2), False)
