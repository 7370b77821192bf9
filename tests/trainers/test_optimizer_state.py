"""Adam's average of squared gradients in bfloat16, and the settings that would break it."""

import pytest
import torch
from accelerate.utils import DistributedType
from tiny_grpo import make_trainer
from tiny_models import make_tiny_model
from torch.nn import Parameter

from trl_r1zero.trainers import (
    ExpertIterationConfig,
    InstructionTuningConfig,
    R1ZeroDPOConfig,
    R1ZeroGRPOConfig,
    R1ZeroSFTConfig,
    make_instruction_tuning_trainer,
)
from trl_r1zero.trainers.optimizer_state import check_second_moment, make_averages

CONFIGS = (
    R1ZeroGRPOConfig,
    R1ZeroSFTConfig,
    ExpertIterationConfig,
    R1ZeroDPOConfig,
    InstructionTuningConfig,
)


def second_moment(dtype: torch.dtype, beta2: float) -> float:
    """Mean over weights of what AdamW divides by, squared: gradients of size 1, then of 0.1.

    A thousand updates each, which 0.95 forgets altogether and 0.999 to a third.
    """
    generator = torch.Generator().manual_seed(0)
    weights = Parameter(torch.zeros(512, dtype=dtype))
    optimizer = torch.optim.AdamW([weights], lr=1e-5, betas=(0.9, beta2), foreach=False)
    for update in range(2000):
        size = 1.0 if update < 1000 else 0.1
        weights.grad = (size * torch.randn(512, generator=generator)).to(dtype)
        optimizer.step()
    return optimizer.state[weights]["exp_avg_sq"].float().mean().item() / (1 - beta2**2000)


@pytest.mark.parametrize("config", CONFIGS)
def test_bfloat16_follows_the_gradients_with_every_default(config, tmp_path):
    beta2 = config(output_dir=str(tmp_path)).adam_beta2
    assert second_moment(torch.bfloat16, beta2) == pytest.approx(0.01, rel=0.05)
    check_second_moment("adamw_torch", beta2, [Parameter(torch.zeros(1, dtype=torch.bfloat16))])


def test_what_is_refused_would_not_decay():
    # (1 - e^-1) e^-1 + 0.01 (1 - e^-1), over the correction 1 - e^-2, is 0.276.
    assert second_moment(torch.float32, 0.999) == pytest.approx(0.276, rel=0.02)
    assert second_moment(torch.bfloat16, 0.999) > 0.8
    bf16, fp32 = (Parameter(torch.zeros(1, dtype=d)) for d in (torch.bfloat16, torch.float32))
    with pytest.raises(ValueError) as error:
        check_second_moment("adamw_torch_fused", 0.999, [fp32, bf16])
    assert str(error.value) == (
        "adam_beta2 is 0.999, but the weights, and so the optimizer's averages, are bfloat16: a "
        "decay by 0.001 at each update is less than the spacing of its numbers (0.0078) and is "
        "rounded away; set adam_beta2 to at most 0.992 (0.95 is the default), or dtype to float32"
    )
    check_second_moment("adamw_torch", 0.992, [bf16])
    check_second_moment("adamw_torch", 0.999, [fp32])
    check_second_moment("rmsprop", 0.999, [bf16])  # another one's setting
    check_second_moment("adamw_torch", 0.999, [bf16], DistributedType.DEEPSPEED)
    # With LoRA the adapters are trained, which are float32 beside a bfloat16 model.
    check_second_moment("adamw_torch", 0.999, [bf16.requires_grad_(False), fp32])


def test_trainers_refuse_it(tokenizer, tmp_path):
    model = make_tiny_model(tokenizer).to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"adam_beta2 is 0\.999, but the weights"):
        make_trainer(tokenizer, tmp_path, model=model, adam_beta2=0.999)
    config = InstructionTuningConfig(
        output_dir=str(tmp_path), adam_beta2=0.999, eval_strategy="no", save_strategy="no"
    )
    chunks = [{"input_ids": torch.zeros(4, dtype=torch.long)}]
    with pytest.raises(ValueError, match=r"adam_beta2 is 0\.999, but the weights"):
        make_instruction_tuning_trainer(model, config, chunks)


# The memory of the averages


@pytest.mark.parametrize("settings", [{}, {"fused": True}, {"amsgrad": True}, {"foreach": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_averages_made_first_are_those_that_adam_makes(settings, dtype):
    runs = []
    for first in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2)).to(dtype)
        model[0].bias.requires_grad_(False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **settings)
        if first:
            make_averages(optimizer)
            made = {id(p): dict(state) for p, state in optimizer.state.items()}
            assert len(made) == 3  # all that learn
        for number in range(3):
            model(torch.full((4, 8), number + 1.0, dtype=dtype)).pow(2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        if first:
            for p, state in optimizer.state.items():
                # In the same memory, so of the same kind.
                assert all(state[name] is tensor for name, tensor in made[id(p)].items())
        runs.append((list(model.parameters()), optimizer.state_dict()["state"]))
    (weights, states), (same_weights, same_states) = runs
    assert all(torch.equal(a, b) for a, b in zip(weights, same_weights, strict=True))
    assert states.keys() == same_states.keys()
    for number, state in states.items():
        assert state.keys() == same_states[number].keys()
        for name, tensor in state.items():
            other = same_states[number][name]
            assert (tensor.dtype, tensor.device) == (other.dtype, other.device)
            assert torch.equal(tensor, other)


def test_what_a_checkpoint_brought_and_other_optimizers_stay():
    weight = Parameter(torch.ones(3))
    adam = torch.optim.AdamW([weight])
    weight.grad = torch.ones(3)
    adam.step()
    before = {name: tensor.clone() for name, tensor in adam.state[weight].items()}
    make_averages(adam)
    assert all(torch.equal(adam.state[weight][name], tensor) for name, tensor in before.items())
    plain = torch.optim.SGD([weight], lr=0.1)
    make_averages(plain)
    assert not plain.state
