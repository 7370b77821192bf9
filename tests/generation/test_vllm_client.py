"""Sampling from a real vLLM server, against transformers on the same weights."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from trl_r1zero.functional import get_response_log_probs
from trl_r1zero.generation import SamplingConfig, TransformersEngine, in_order
from trl_r1zero.generation.vllm_client import (
    VLLMConnectionError,
    VLLMRefusal,
    VLLMServerEngine,
)
from trl_r1zero.generation.weight_engines import GlooWeightSync, open_weight_sync
from trl_r1zero.generation.weight_transfer import TensorInfo

PROMPTS = ["1 + 2 = ", "Question: 12 - 7\n", "User: 3"]


@pytest.fixture(scope="module")
def engine(vllm_server) -> VLLMServerEngine:
    return VLLMServerEngine(vllm_server.base_url, wait_seconds=10)


@pytest.fixture(scope="module")
def model(served_model_folder, engine):
    """A model whose weights the server has, other ones than it was started with."""
    model = AutoModelForCausalLM.from_pretrained(served_model_folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    sync = open_weight_sync(engine, torch.device("cpu"), timeout_seconds=60)
    assert isinstance(sync, GlooWeightSync)
    send(sync, model)
    return model


def send(sync, model) -> None:
    named = list(model.named_parameters())
    sync.update([TensorInfo.of(*pair) for pair in named], ((n, p.data) for n, p in named))


def ids_of(engine, prompts=PROMPTS) -> list[list[int]]:
    return [engine.tokenizer(prompt)["input_ids"] for prompt in prompts]


def test_log_probs_are_the_trainers_after_a_sync(engine, model):
    # The embedding is the output head too: a head that kept its old copy would show here.
    assert model.config.tie_word_embeddings
    for ids in ids_of(engine):
        tokens = torch.tensor([ids])
        with torch.no_grad():
            expected = get_response_log_probs(model, tokens[:, :-1], tokens[:, 1:])["log_probs"]
        assert engine.log_probs(ids) == pytest.approx(expected[0].tolist(), abs=2e-5)


def test_greedy_completions_are_those_of_transformers(engine, model):
    sampling = SamplingConfig(temperature=0, max_tokens=12, min_tokens=3)
    seeds = list(range(len(PROMPTS)))
    own = in_order(engine.stream(ids_of(engine), sampling, seeds))
    others = in_order(
        TransformersEngine(model, engine.tokenizer).stream(ids_of(engine), sampling, seeds)
    )
    for completion, other in zip(own, others, strict=True):
        assert completion.token_ids == other.token_ids
        # vLLM leaves out the bytes of an unfinished character at the end.
        assert completion.text == other.text.rstrip("\ufffd")
        assert completion.finish_reason == other.finish_reason


def test_a_seed_makes_the_completion_and_log_probs_are_those_of_its_tokens(engine, model):
    sampling = SamplingConfig(max_tokens=10, min_tokens=0, temperature=0.7)
    ids = ids_of(engine)[:1] * 4
    first, second, third, again = in_order(engine.stream(ids, sampling, [1, 2, 3, 1]))
    assert first.token_ids == again.token_ids
    assert len({tuple(c.token_ids) for c in (first, second, third)}) == 3
    tokens = torch.tensor([ids[0] + first.token_ids])
    with torch.no_grad():
        output = get_response_log_probs(model, tokens[:, :-1], tokens[:, 1:], temperature=0.7)
    expected = output["log_probs"][0, len(ids[0]) - 1 :].tolist()
    assert first.log_probs == pytest.approx(expected, abs=1e-4)


def test_stop_strings_are_kept_and_minimum_lengths_hold(engine, model):
    free = SamplingConfig(max_tokens=30, min_tokens=0, temperature=2.0)
    ids, seeds = ids_of(engine)[:1] * 64, list(range(64))
    # The second character of some completion as the stop string.
    text = next(c.text for c in in_order(engine.stream(ids, free, seeds)) if len(c.text) > 8)
    sampling = SamplingConfig(max_tokens=30, min_tokens=0, temperature=2.0, stop=(text[4],))
    completions = in_order(engine.stream(ids, sampling, seeds))
    stopped = [c for c in completions if text[4] in c.text]
    assert stopped
    assert all(c.finish_reason == "stop" and c.text.endswith(text[4]) for c in stopped)
    assert any(c.truncated and len(c.token_ids) == 30 for c in completions)
    patient = SamplingConfig(max_tokens=8, min_tokens=8, temperature=2.0, stop=(text[4],))
    assert all(len(c.token_ids) == 8 for c in in_order(engine.stream(ids, patient, seeds)))


def test_what_does_not_fit_is_an_error_before_anything_is_sent(engine):
    with pytest.raises(ValueError, match=r"prompt 1 has 3 tokens, .* 4094 is more .* 4096"):
        list(engine.stream([[5], [5, 6, 7]], SamplingConfig(max_tokens=4094), [0, 1]))
    with pytest.raises(ValueError, match="prompt 0 has no tokens"):
        list(engine.stream([[]], SamplingConfig(), [0]))
    with pytest.raises(ValueError, match="got 1 prompts but 2 seeds"):
        list(engine.stream([[5]], SamplingConfig(max_tokens=4), [0, 1]))


def test_a_refusal_is_in_the_servers_words(engine):
    with pytest.raises(VLLMRefusal, match=r"refused /v1/completions \(HTTP 400\): Token id"):
        list(engine.stream([[5, 10**6]], SamplingConfig(max_tokens=4), [0]))
    assert engine.is_up()  # and it goes on


def test_a_stream_that_nobody_reads_to_its_end_leaves_the_server_working(engine):
    rows = engine.stream(ids_of(engine) * 20, SamplingConfig(max_tokens=100), list(range(60)))
    next(rows)
    rows.close()
    sampling = SamplingConfig(temperature=0, max_tokens=4)
    assert len(in_order(engine.stream(ids_of(engine), sampling, [0, 0, 0]))) == 3


def test_an_address_without_a_server_is_an_error():
    with pytest.raises(VLLMConnectionError, match=r"no vLLM server at http://127.0.0.1:9 .* serve"):
        VLLMServerEngine("http://127.0.0.1:9")


def test_a_trainer_that_comes_later_takes_over_the_weights(engine, model):
    """As after a restart of the trainer: a new group, the old one forgotten."""
    sync = open_weight_sync(engine, torch.device("cpu"), timeout_seconds=60)
    with torch.no_grad():
        model.model.norm.weight.mul_(0.5)
    send(sync, model)
    test_log_probs_are_the_trainers_after_a_sync(engine, model)
    assert math.isfinite(engine.log_probs(ids_of(engine)[0])[0])
