"""Rows one behind the other: by which attention, and that they do not see one another."""

import inspect

import pytest
import torch
from tiny_grpo import LENGTHS, REWARDS, gradient_of_update, make_rollouts, make_trainer
from tiny_models import make_tiny_model
from transformers import LlamaConfig, Qwen3NextConfig, modeling_flash_attention_utils
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trl_r1zero.trainers.attention import packs_rows

FLASH = "kernels-community/flash-attn2"


def config_with(attention, config=None):
    config = config or LlamaConfig()
    config._attn_implementation_internal = attention
    return config


@pytest.mark.parametrize(
    ("attention", "default"),
    [
        ("eager", False),
        ("sdpa", False),
        ("flex_attention", False),
        ("flash_attention_2", True),
        ("flash_attention_3", True),
        (FLASH, True),
        ("kernels-community/vllm-flash-attn3", True),
    ],
)
def test_rows_are_packed_by_default_with_flash_attention(attention, default):
    config = config_with(attention)
    assert packs_rows(None, config) is default
    assert packs_rows(False, config) is False
    assert packs_rows(True, config) is True


def test_an_attention_that_computes_what_it_hides_is_said_to(caplog):
    packs_rows(True, config_with(FLASH))
    assert not caplog.text
    packs_rows(True, config_with("sdpa"))
    assert "sdpa attention computes what lies between rows, too, and masks it" in caplog.text


def test_rows_that_would_see_one_another_are_an_error():
    with pytest.raises(ValueError, match="with attn_implementation 'somebodys/attention' rows"):
        packs_rows(True, config_with("somebodys/attention"))
    assert packs_rows(None, config_with("somebodys/attention")) is False
    stateful = config_with(FLASH, Qwen3NextConfig())
    with pytest.raises(ValueError, match=r"layers \(linear_attention\) in which a row would see"):
        packs_rows(True, stateful)
    assert packs_rows(None, stateful) is False


def flash_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, softmax_scale=None, **_):
    """What flash attention computes of sequences one behind the other: (tokens, heads, width)."""
    outputs = []
    flash_varlen.rows.append(len(cu_seqlens_q) - 1)
    for start, end in zip(cu_seqlens_q.tolist(), cu_seqlens_q.tolist()[1:], strict=False):
        row = [t[start:end].transpose(0, 1).unsqueeze(0) for t in (q, k, v)]
        output = torch.nn.functional.scaled_dot_product_attention(
            *row, is_causal=causal, scale=softmax_scale, enable_gqa=True
        )
        outputs.append(output.squeeze(0).transpose(0, 1))
    return torch.cat(outputs)


def flash(q, k, v, causal, softmax_scale=None, **_):
    output = torch.nn.functional.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in (q, k, v)),
        is_causal=causal,
        scale=softmax_scale,
        enable_gqa=True,
    )
    return output.transpose(1, 2)


@pytest.fixture
def flash_attention(monkeypatch):
    """The name of the hub's kernel, with torch's arithmetic behind transformers' own wrapper."""
    module = modeling_flash_attention_utils

    def keywords(is_causal, softmax_scale, **_):
        return {"causal": is_causal, "softmax_scale": softmax_scale}

    # Newer versions of transformers have a second function, for their paged cache.
    paged = "process_paged_kwargs_fn" in inspect.getsource(module)
    monkeypatch.setattr(
        module,
        "lazy_import_flash_attention",
        lambda *args, **kwargs: (
            (flash, flash_varlen, None, None, None),
            (keywords, keywords) if paged else keywords,
        ),
    )
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, FLASH, flash_attention_forward)
    monkeypatch.setitem(
        ALL_MASK_ATTENTION_FUNCTIONS._global_mapping,
        FLASH,
        ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"],
    )
    flash_varlen.rows = []
    return FLASH


def gradient_with(attention, tokenizer, tmp_path, **settings):
    model = make_tiny_model(tokenizer)
    model.config._attn_implementation_internal = attention
    trainer = make_trainer(
        tokenizer, tmp_path, model=model, gradient_accumulation_steps=2, max_completion_length=16,
        rollout_batch_size=8, train_batch_size=8, **settings,
    )  # fmt: skip
    rollouts = make_rollouts(tokenizer, LENGTHS, REWARDS, 4)
    return trainer, gradient_of_update(trainer, rollouts)


@pytest.mark.parametrize("fused", [False, True])
def test_flash_attention_gets_rows_apart_and_gives_the_same_gradient(
    tokenizer, tmp_path, flash_attention, fused
):
    _, expected = gradient_with("eager", tokenizer, tmp_path, fused_lm_head=fused)
    assert flash_varlen.rows == []
    trainer, gradient = gradient_with(flash_attention, tokenizer, tmp_path, fused_lm_head=fused)
    assert trainer.args.pack_rows is True
    # Every layer's call has the rows of its micro-batch, apart.
    assert flash_varlen.rows
    assert set(flash_varlen.rows) == {4}
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_masks_keep_rows_apart(tokenizer, tmp_path, attention):
    padded, expected = gradient_with(attention, tokenizer, tmp_path)
    assert padded.args.pack_rows is False
    _, gradient = gradient_with(attention, tokenizer, tmp_path, pack_rows=True)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)
