"""What a trainer keeps on its device, against real optimizers, and what a server takes."""

import pytest
import torch
from memory_shapes import qwen_math_config
from torch import nn
from transformers import Trainer
from transformers.training_args import OptimizerNames, TrainingArguments

from trl_r1zero.devices.memory import (
    GIB,
    ModelShape,
    ParameterFacts,
    Sharing,
    server_memory,
    trainer_bytes,
)

QWEN_MATH = ModelShape.from_config(qwen_math_config())


def held_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Weights, and the tensors of the optimizer's state but its scalar counters."""
    states = [t for state in optimizer.state.values() for t in state.values()]
    tensors = [*model.parameters(), *(t for t in states if torch.is_tensor(t) and t.dim() > 0)]
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw_torch", "rmsprop", "sgd", "adagrad"])
def test_it_is_what_the_optimizer_of_transformers_keeps(name, dtype, tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), optim=name, use_cpu=True)
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 4)).to(dtype)
    model[0].requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = kind(trained, **settings)
    model(torch.randn(2, 16, dtype=dtype)).sum().backward()
    optimizer.step()
    facts = [
        ParameterFacts(p.numel(), p.element_size(), p.requires_grad) for p in model.parameters()
    ]
    assert trainer_bytes(facts, name) == held_bytes(model, optimizer)


def test_qwen_by_the_table():
    """1.54B parameters with AdamW: 3 x 5.75 GiB in float32, half of that in bfloat16."""
    count = 1_543_714_304
    assert trainer_bytes([ParameterFacts(count, 4)], "adamw_torch_fused") == 12 * count
    assert trainer_bytes([ParameterFacts(count, 2)], "adamw_torch_fused") == 6 * count
    frozen = [ParameterFacts(count, 2, trained=False), ParameterFacts(10**6, 4)]
    assert trainer_bytes(frozen, "adamw_torch") == 2 * count + 12 * 10**6


def test_sharing_out():
    facts = [ParameterFacts(1000, 2)]
    assert trainer_bytes(facts, "adamw_torch", Sharing(gradient_buckets=True)) == 8000  # DDP
    assert trainer_bytes(facts, "adamw_torch", Sharing(weights=4, states=4)) == 1500  # FSDP
    zero2 = Sharing(states=4, master_weights=True)
    assert trainer_bytes(facts, "adamw_torch", zero2) == 2000 + 3 * 4 * 1000 // 4


@pytest.mark.parametrize("name", [one.value for one in OptimizerNames])
def test_no_optimizer_is_taken_for_less_than_its_weights(name):
    assert trainer_bytes([ParameterFacts(100, 4)], name) >= 400


def test_an_unknown_optimizer_counts_as_adamw():
    assert trainer_bytes([ParameterFacts(100, 4)], "somebodys") == 1200
    assert trainer_bytes([ParameterFacts(100, 4)], "adamw_bnb_8bit") == 600


# Servers


def test_a_server_with_24_gb():
    """28,672 bytes of keys and values a token; 2.9 GiB of weights."""
    server = server_memory(QWEN_MATH, "bfloat16", 2048, 256, share_bytes=int(0.9 * 24 * GIB))
    assert server.kv_bytes_per_token == 28672
    assert server.weights / GIB == pytest.approx(2.88, abs=0.01)
    assert server.sequences == 256


def test_a_server_with_too_little():
    server = server_memory(QWEN_MATH, "bfloat16", 2048, 256, share_bytes=3 * GIB)
    assert server.kv_bytes < 0
    assert server.sequences == 0
