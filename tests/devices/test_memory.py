"""The memory model against what autograd saves, and against what is known of Qwen2.5-Math-1.5B."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from memory_shapes import qwen_math_config, smollm_config
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedConfig, Qwen3Config

from trl_r1zero.devices.memory import (
    GIB,
    ModelShape,
    TrainingSetup,
    checkpoint_bytes,
    layer_activation_bytes,
    tokens_per_microbatch,
    training_memory,
)
from trl_r1zero.devices.training_setup import attention_kind, sharding_of

ROWS, LENGTH = 2, 256
QWEN_MATH = ModelShape.from_config(qwen_math_config())
BF16 = TrainingSetup(weights_dtype="bfloat16", autocast=False)


def saved_by_autograd(config: PreTrainedConfig, dtype: torch.dtype, autocast: bool) -> int:
    """Bytes of all that the layers save for backward, but weights; casts of weights included."""
    saved: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    # Tensors without memory, where the model can be told that there is no mask: transformers makes
    # one of fake tensors, which it does not of real ones.
    fake = hasattr(config, "layer_types")
    with FakeTensorMode() if fake else nullcontext():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).train()
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            mask = {"full_attention": None} if fake else None
            output = model.base_model(ids, attention_mask=mask, use_cache=False)
        del output
        return sum(size for key, (size, _) in saved.items() if key not in weights)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("dtype", "autocast"), [("float32", True), ("float32", False), ("bfloat16", False)]
)
@pytest.mark.parametrize(
    "make_config",
    [
        qwen_math_config,
        smollm_config,
        lambda: Qwen3Config(
            hidden_size=1024, intermediate_size=3072, num_attention_heads=16, num_key_value_heads=8
        ),
    ],
    ids=["qwen2.5-math-1.5b", "smollm2-135m", "qwen3-0.6b"],
)
def test_a_layers_activations_are_what_autograd_saves(make_config, dtype, autocast, attention):
    saved = []
    for num_layers in (1, 2):
        config = make_config()
        config.num_hidden_layers = num_layers
        config.vocab_size = 1000
        if hasattr(config, "layer_types"):
            config.layer_types = ["full_attention"] * num_layers
        config._attn_implementation = attention
        saved.append(saved_by_autograd(config, getattr(torch, dtype), autocast))
        shape = ModelShape.from_config(config)
    setup = TrainingSetup(
        weights_dtype=dtype,
        autocast=autocast,
        attention=attention,
        tokens=ROWS * LENGTH,
        longest_row=LENGTH,
    )
    casts = 2 * shape.num_layer_matrix_parameters if autocast else 0
    assert layer_activation_bytes(shape, setup) + casts == pytest.approx(
        saved[1] - saved[0], rel=0.01
    )


def test_the_whole_models_activations_are_what_autograd_saves():
    """At Qwen2.5-Math-1.5B's full size, with tensors that have no memory."""
    saved = saved_by_autograd(qwen_math_config(), torch.float32, autocast=True)
    setup = TrainingSetup(tokens=ROWS * LENGTH, longest_row=LENGTH)
    predicted = training_memory(QWEN_MATH, setup).activations
    assert predicted == pytest.approx(saved, rel=0.05)


def test_parameters_are_counted_without_weights():
    assert QWEN_MATH.num_parameters == 1_543_714_304
    assert ModelShape.from_config(smollm_config()).num_parameters == 134_515_008


def test_an_unknown_architecture_is_an_error():
    with pytest.raises(ValueError, match="the memory of a gpt2 is not known here, only that of"):
        ModelShape.from_config(GPT2Config())


def test_parts_of_the_default_recipe():
    """23 GiB of float32 weights, gradients and states; in bfloat16 half of it."""
    parts = training_memory(QWEN_MATH, TrainingSetup())
    assert parts.static / GIB == pytest.approx(23.0, abs=0.05)
    assert parts.weights == parts.gradients == parts.optimizer / 2
    assert training_memory(QWEN_MATH, BF16).static == parts.static / 2
    assert parts.total == parts.static + parts.activations + parts.logits + parts.reserved


def test_the_known_peaks():
    """The sums on paper that the project had before it had this model, in GiB, within a tenth."""
    ckpt = dataclasses.replace(BF16, gradient_checkpointing=True)
    wide = dataclasses.replace(BF16, tokens=8192)
    assert training_memory(QWEN_MATH, TrainingSetup()).total / GIB == pytest.approx(35, rel=0.1)
    assert training_memory(QWEN_MATH, BF16).total / GIB == pytest.approx(21, rel=0.1)
    assert training_memory(QWEN_MATH, ckpt).total / GIB == pytest.approx(14, rel=0.1)
    assert training_memory(QWEN_MATH, wide).total / GIB == pytest.approx(38, rel=0.1)


def test_logits_cost_without_the_fused_head():
    """4,096 x 151,936 logits in bfloat16 and their gradient: 2.3 GiB."""
    fused = dataclasses.replace(BF16, tokens=4096)
    plain = dataclasses.replace(fused, fused_lm_head=False)
    logits = 2 * 2 * 4096 * QWEN_MATH.vocabulary_size
    assert training_memory(QWEN_MATH, plain).logits > logits / 2
    assert training_memory(QWEN_MATH, plain).total > training_memory(QWEN_MATH, fused).total
    few = dataclasses.replace(plain, logit_positions=256)
    assert training_memory(QWEN_MATH, few).total < training_memory(QWEN_MATH, plain).total


def test_the_loss_of_transformers_works_on_all_logits_in_float32():
    setup = dataclasses.replace(BF16, fused_lm_head=False, tokens=4096)
    whole = dataclasses.replace(setup, transformers_loss=True)
    logits = 4096 * QWEN_MATH.vocabulary_size
    difference = training_memory(QWEN_MATH, whole).total - training_memory(QWEN_MATH, setup).total
    # Three float32 tensors, in place of a gradient in bfloat16 and some chunks.
    assert 8 * logits < difference < 12 * logits


def test_eager_attention_is_quadratic_in_the_row_and_sdpa_is_not():
    def activations(attention: str, longest_row: int) -> int:
        setup = dataclasses.replace(BF16, attention=attention, longest_row=longest_row)
        return training_memory(QWEN_MATH, setup).activations

    assert activations("sdpa", 2048) == activations("sdpa", 512)
    difference = activations("eager", 2048) - activations("eager", 512)
    assert difference == 28 * 12 * 6 * 2048 * (2048 - 512)  # layers, heads, bytes, tokens, keys


def test_packing_is_quadratic_except_with_flash_attention():
    def activations(attention: str, packed: bool) -> int:
        setup = dataclasses.replace(BF16, attention=attention, packed=packed, tokens=8192)
        return training_memory(QWEN_MATH, setup).activations

    assert activations("flash", packed=True) == activations("flash", packed=False)
    assert activations("sdpa", packed=True) > activations("sdpa", packed=False) + 28 * 2 * 8192**2


def test_adapters_have_small_gradients_and_states():
    setup = dataclasses.replace(BF16, trainable_parameters=1_000_000)
    parts = training_memory(QWEN_MATH, setup)
    assert (parts.gradients, parts.optimizer) == (4_000_000, 8_000_000)
    assert checkpoint_bytes(QWEN_MATH, setup) == 12_000_000


def test_what_several_processes_share_out():
    def parts(sharding: str):
        setup = dataclasses.replace(BF16, processes=4, sharding=sharding)
        return training_memory(QWEN_MATH, setup)

    alone = training_memory(QWEN_MATH, BF16)
    assert parts("none").gradients == 2 * alone.gradients  # DDP's buckets
    assert parts("zero2").gradients == alone.gradients // 4
    assert parts("zero2").weights == alone.weights
    # bfloat16 weights under DeepSpeed: float32 weights and two float32 states, over 4 processes.
    assert parts("zero2").optimizer == QWEN_MATH.num_parameters * 12 // 4
    assert parts("zero3").weights < alone.weights / 2
    assert parts("zero3").optimizer == parts("zero2").optimizer


def test_a_checkpoint_of_the_default_recipe_is_18_5_gb():
    assert checkpoint_bytes(QWEN_MATH, TrainingSetup()) / 1e9 == pytest.approx(18.5, abs=0.05)


@pytest.mark.parametrize(
    ("optimizer", "per_parameter"),
    [("adamw_torch", 4), ("sgd", 0), ("adamw_bnb_8bit", 2), ("paged_adamw_32bit", 8)],
)
def test_states_of_optimizers(optimizer, per_parameter):
    setup = dataclasses.replace(BF16, optimizer=optimizer)
    assert training_memory(QWEN_MATH, setup).optimizer == per_parameter * QWEN_MATH.num_parameters


def test_a_wrong_word_is_an_error():
    with pytest.raises(ValueError, match=r"optimizer must be one of adafactor, .*; got 'lomo'"):
        TrainingSetup(optimizer="lomo")


# Budgets


@pytest.mark.parametrize("gib", [20, 24, 40, 80])
def test_the_budget_is_the_most_that_fits(gib):
    budget = tokens_per_microbatch(QWEN_MATH, BF16, gib * GIB)
    assert budget % 256 == 0
    assert training_memory(QWEN_MATH, dataclasses.replace(BF16, tokens=budget)).total <= (
        0.9 * gib * GIB
    )
    more = dataclasses.replace(BF16, tokens=budget + 1024)
    assert training_memory(QWEN_MATH, more).total > 0.9 * gib * GIB


def test_the_budget_has_room_for_the_longest_row():
    setup = dataclasses.replace(BF16, longest_row=1500, gradient_checkpointing=True)
    just = training_memory(QWEN_MATH, dataclasses.replace(setup, tokens=1500)).total
    assert tokens_per_microbatch(QWEN_MATH, setup, int(just / 0.9) + 10) == 1500


def test_a_budget_that_no_row_fits_says_what_would_be_enough():
    with pytest.raises(ValueError, match=r"a row of 1024 tokens needs 30\.6 GiB") as caught:
        tokens_per_microbatch(QWEN_MATH, TrainingSetup(), 24 * GIB)
    # Checkpointing alone does not make room for 23 GiB of float32 weights and states.
    assert "set dtype: bfloat16, or train adapters" in str(caught.value)
    assert "gradient_checkpointing" not in str(caught.value)
    with pytest.raises(ValueError, match="set dtype: bfloat16 and gradient_checkpointing: true"):
        tokens_per_microbatch(QWEN_MATH, TrainingSetup(longest_row=2048), 18 * GIB)


# Names of transformers and accelerate


@pytest.mark.parametrize(
    ("name", "kind"),
    [(None, "sdpa"), ("eager", "eager"), ("kernels-community/flash-attn2", "flash")],
)
def test_kinds_of_attention(name, kind):
    assert attention_kind(name) == kind


def test_sharding_by_accelerates_names():
    assert sharding_of("FSDP") == "zero3"
    assert sharding_of("DEEPSPEED", 2) == "zero2"
    assert sharding_of("MULTI_GPU") == "none"
