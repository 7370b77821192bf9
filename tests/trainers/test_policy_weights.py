"""The policy's weights as they travel to a server."""

import weakref

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from trl_r1zero.generation.weight_transfer import TensorInfo

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm")


@pytest.fixture
def weights(tiny_model, tokenizer):
    from trl_r1zero.trainers.policy_weights import PolicyWeights

    return PolicyWeights(tiny_model, Accelerator(cpu=True), tokenizer)


@pytest.mark.parametrize("server_dtype", [None, torch.float32, torch.bfloat16])
def test_what_is_announced_is_what_comes_in_the_servers_dtype(server_dtype, weights, tiny_model):
    weights.server_dtype = server_dtype
    infos = weights.infos()
    assert infos == [TensorInfo.of(*named) for named in weights.tensors()]
    own = dict(tiny_model.named_parameters())
    assert [info.name for info in infos] == list(own)
    assert {info.torch_dtype for info in infos} == {server_dtype or torch.float32}
    for name, tensor in weights.tensors():
        assert torch.equal(tensor, own[name].to(server_dtype or torch.float32))


def test_no_second_model_is_made_of_them(weights, tiny_model):
    class Operations(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    weights.server_dtype = torch.bfloat16
    with Operations() as operations:
        weights.infos()
    assert operations.names <= {"detach"}  # nothing is copied to be announced
    made = []
    for _, tensor in weights.tensors():
        assert sum(other() is not None for other in made) <= 1  # one at a time
        made.append(weakref.ref(tensor))
    weights.server_dtype = None
    own = dict(tiny_model.named_parameters())
    assert all(t.data_ptr() == own[name].data_ptr() for name, t in weights.tensors())
