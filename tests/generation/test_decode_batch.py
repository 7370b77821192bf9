"""Rows that come, decode together and leave: what is computed for them, and that it is the same."""

from dataclasses import dataclass, field

import pytest
import torch
from tiny_models import make_tiny_model
from transformers import MistralConfig, MistralForCausalLM

from trl_r1zero.generation import SamplingConfig, TransformersEngine, generate, in_order, row_seeds

BEGINNING = "Q: 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10 + 11 + 12 + 13 + 14 + 15"
ENDS = [" + 3\nA:", " - 4 - 5 - 6\nA:", "\nA:", " - 17 + 2\nA:"]


@pytest.fixture
def prompt_ids(tokenizer):
    """Twelve prompts, four different ones with a long common beginning, of several lengths."""
    return [tokenizer(BEGINNING + ENDS[row % 4])["input_ids"] for row in range(12)]


@dataclass
class Calls:
    """What a model is called with: (rows, tokens) of each forward, and the caches."""

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    caches: list = field(default_factory=list)

    def __call__(self, module, args, kwargs):
        self.shapes.append(tuple(kwargs["input_ids"].shape))
        self.caches.append(kwargs["past_key_values"])


@pytest.fixture
def watched(tiny_model):
    calls = Calls()
    tiny_model.eval().register_forward_pre_hook(calls, with_kwargs=True)
    return tiny_model, calls


def test_what_prompts_have_in_common_is_read_once(watched, tokenizer, prompt_ids):
    model, calls = watched
    generate(model, tokenizer, prompt_ids, SamplingConfig(max_tokens=3, min_tokens=3), range(12))
    common = len(tokenizer(BEGINNING)["input_ids"])
    prefix, prompts, *steps = calls.shapes
    assert prefix[0] == 1 and abs(prefix[1] - common) <= 1  # a token may cross the boundary
    assert prompts == (4, max(map(len, prompt_ids)) - prefix[1])
    assert steps == [(12, 1)] * 2


def test_long_prompts_are_read_in_parts(watched, tokenizer, monkeypatch, prompt_ids):
    monkeypatch.setattr("trl_r1zero.generation.decode_batch._PROMPT_TOKENS", 12)
    model, calls = watched
    sampling = SamplingConfig(max_tokens=4, min_tokens=4)
    together = generate(model, tokenizer, prompt_ids, sampling, range(12))
    assert len([shape for shape in calls.shapes if shape[1] > 1]) > 2
    alone = [generate(model, tokenizer, [p], sampling, [n])[0] for n, p in enumerate(prompt_ids)]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]


def small_mistral(tokenizer):
    """A model whose attention sees the last 8 tokens."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
        bos_token_id=None,
        eos_token_id=None,
    )
    return MistralForCausalLM(config)


@pytest.mark.parametrize("make_model", [make_tiny_model, small_mistral])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_that_wait_take_the_place_of_those_that_end(
    tokenizer, prompt_ids, make_model, attention
):
    model = make_model(tokenizer).eval()
    model.set_attn_implementation(attention)
    calls = Calls()
    model.register_forward_pre_hook(calls, with_kwargs=True)
    eos = list(range(0, len(tokenizer), 4))  # rows end after about four tokens
    sampling = SamplingConfig(max_tokens=24, min_tokens=0)
    seeds = row_seeds(1, "r", 0, range(12))
    engine = TransformersEngine(model, tokenizer, eos_token_ids=eos, batch_size=5)
    together = in_order(engine.stream(prompt_ids, sampling, seeds))
    assert max(rows for rows, _ in calls.shapes) <= 5
    assert model.config._attn_implementation == attention
    alone = [
        generate(model, tokenizer, [prompt], sampling, [seed], eos_token_ids=eos)[0]
        for prompt, seed in zip(prompt_ids, seeds, strict=True)
    ]
    assert len({len(c.token_ids) for c in together}) > 3
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)


def test_the_cache_grows_in_steps(watched, tokenizer, monkeypatch, prompt_ids):
    model, calls = watched
    sampling = SamplingConfig(max_tokens=20, min_tokens=20)
    expected = generate(model, tokenizer, prompt_ids, sampling, range(12))
    monkeypatch.setattr("trl_r1zero.generation.decode_batch._ROOM", 4)
    calls.caches.clear()
    assert generate(model, tokenizer, prompt_ids, sampling, range(12)) == expected
    # The same tensors are written for five tokens, and keys are seen without what is behind them.
    layer = calls.caches[-1].layers[0]
    assert layer.keys.shape[2] == max(map(len, prompt_ids)) + 19


def test_under_autocast_keys_and_values_have_its_dtype(watched, tokenizer, prompt_ids):
    model, calls = watched
    sampling = SamplingConfig(temperature=0.8, max_tokens=10, min_tokens=0)
    with torch.autocast("cpu", torch.bfloat16):
        completions = generate(model, tokenizer, prompt_ids, sampling, range(12))
    layer = calls.caches[-1].layers[0]
    assert layer.keys.dtype == layer.values.dtype == torch.bfloat16
    for prompt, completion in zip(prompt_ids, completions, strict=True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            ids_1T = torch.tensor([prompt + completion.token_ids])
            logits_TV = model(input_ids=ids_1T, past_key_values=None).logits[
                0, len(prompt) - 1 : -1
            ]
        log_probs = (logits_TV.float() / 0.8).log_softmax(-1)
        expected = log_probs.gather(1, torch.tensor(completion.token_ids).unsqueeze(1)).squeeze(1)
        assert torch.tensor(completion.log_probs) == pytest.approx(expected, abs=2e-2)


def test_a_padded_row_does_not_catch_a_nan(tiny_model, tokenizer, monkeypatch, prompt_ids):
    # Memory that nobody has written may hold anything; several parts are of several lengths.
    monkeypatch.setattr("trl_r1zero.generation.decode_batch._PROMPT_TOKENS", 12)
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor,
        "new_empty",
        lambda *args, **kwargs: new_empty(*args, **kwargs).fill_(torch.nan),
    )
    completions = generate(
        tiny_model, tokenizer, prompt_ids, SamplingConfig(max_tokens=5), [0] * 12
    )
    assert all(torch.tensor(c.log_probs).isfinite().all() for c in completions)
