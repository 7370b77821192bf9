"""OfflineVLLMEngine: vLLM's completions in the words of the transformers engine."""

import re
from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
from offline_vllm import (
    ACCEPTED,
    PROMPTS,
    REJECTED,
    SAMPLINGS,
    SEEDS,
)
from transformers import AutoModelForCausalLM

from trl_r1zero import get_response_log_probs
from trl_r1zero.generation import Completion, TransformersEngine, in_order

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def completions(offline_vllm) -> Callable[[str], list[Completion]]:
    def named(name: str) -> list[Completion]:
        return in_order((row, Completion(**fields)) for row, fields in offline_vllm[name])

    return named


@pytest.fixture(scope="module")
def model(served_model_folder):
    return AutoModelForCausalLM.from_pretrained(served_model_folder, dtype=torch.float32).eval()


def test_greedy_is_that_of_transformers(model, tokenizer, completions):
    engine = TransformersEngine(model, tokenizer)
    ids = tokenizer(PROMPTS)["input_ids"]
    expected = in_order(engine.stream(ids, SAMPLINGS["greedy"], SEEDS))
    for ours, theirs in zip(completions("greedy"), expected, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.text == theirs.text
        assert ours.finish_reason == theirs.finish_reason
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-4)
        assert ours.entropies is None


@torch.no_grad()
def test_log_probs_are_those_of_the_model_at_the_temperature(model, tokenizer, completions):
    for prompt, completion in zip(PROMPTS, completions("sampled"), strict=True):
        prompt_ids = tokenizer(prompt)["input_ids"]
        ids = torch.tensor([prompt_ids + completion.token_ids])
        expected = get_response_log_probs(model, ids[:, :-1], ids[:, 1:], temperature=0.7)
        assert completion.log_probs == pytest.approx(
            expected["log_probs"][0, len(prompt_ids) - 1 :].tolist(), abs=1e-4
        )


def test_rows_differ_and_do_not_depend_on_the_other_rows(completions):
    sampled = completions("sampled")
    assert len({tuple(completion.token_ids) for completion in sampled}) == len(PROMPTS)
    again = completions("backwards")
    assert [c.token_ids for c in again] == [c.token_ids for c in sampled]


def test_stop_strings_are_kept_and_end_a_completion(tokenizer, completions):
    sampling = SAMPLINGS["stopped"]
    stopped = [c for c in completions("stopped") if c.text.endswith(sampling.stop)]
    assert stopped
    for completion in stopped:
        assert completion.finish_reason == "stop"
        assert len(completion.token_ids) > sampling.min_tokens
        # Every token up to the one that completed the stop string, and the text cut behind it.
        whole = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        assert whole.startswith(completion.text)
        shorter = tokenizer.decode(completion.token_ids[:-1], skip_special_tokens=True)
        assert len(shorter) < len(completion.text)


def test_finish_reasons_are_right(tokenizer, completions):
    eos = tokenizer.eos_token_id
    for name, sampling in SAMPLINGS.items():
        for completion in completions(name):
            ended = completion.token_ids[-1] == eos or completion.text.endswith(
                sampling.stop or ("never",)
            )
            assert completion.finish_reason == ("stop" if ended else "length")
            assert ended or len(completion.token_ids) == sampling.max_tokens
            assert len(completion.token_ids) == len(completion.log_probs)
            assert tokenizer.eos_token not in completion.text


def test_completions_are_yielded_as_they_end(offline_vllm):
    rows = offline_vllm["stopped"]
    lengths = [len(fields["token_ids"]) for _, fields in rows]
    # Not sorted: vLLM's own process may begin with a request some steps before it has the next.
    assert lengths[0] < lengths[-1]
    assert [row for row, _ in rows] != sorted(row for row, _ in rows)


def test_filters_reach_vllm(completions):
    """The likeliest token alone: its probability is then 1."""
    for completion in completions("filtered"):
        assert completion.log_probs == [0.0] * len(completion.token_ids)


def test_a_stream_that_is_given_up_leaves_nothing(offline_vllm, completions):
    # How many are left depends on how far vLLM's own process is.
    assert re.match(r"RuntimeError: the vllm\.LLM has [1-9]\d* unfinished", offline_vllm["busy"])
    assert offline_vllm["left_after_close"] == 0
    assert completions("after_close") == completions("sampled")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            "too long",
            "prompt 0 has 120 tokens, which with max_tokens 16 is more than max_model_len",
        ),
        ("empty", "prompt 0 has no tokens"),
        ("seeds", "got 2 prompts but 1 seeds"),
        ("cold", "temperature: got 0.001, expected 0 (greedy) or at least 0.01"),
    ],
)
def test_what_is_refused(case, message, offline_vllm):
    assert offline_vllm["errors"][case].startswith(f"ValueError: {message}")
    assert offline_vllm["left_after_errors"] == 0


def test_other_log_probs_are_not_taken(completions):
    """Those of a vllm.LLM with its default logprobs_mode are of temperature 1."""
    raw = completions("raw")
    assert [c.log_probs for c in raw] == [None] * len(PROMPTS)
    assert [c.token_ids for c in raw] == [c.token_ids for c in completions("greedy")]


def test_close_ends_the_processes_of_its_own_model_only(offline_vllm):
    assert offline_vllm["still_alive"] == len(PROMPTS)
    assert "VLLM::EngineCore" in offline_vllm["processes"]
    assert offline_vllm["processes_after_close"] == []


# vLLM's SamplingParams

PLAIN = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "max_tokens": 16,
    "min_tokens": 0,
    "stop": [],
}


@pytest.mark.parametrize(
    ("name", "changes", "n", "seed"),
    [
        ("handout", {"stop": ["</answer>"]}, 1, None),
        ("n and seed", {"max_tokens": 8}, 4, 7),
        ("filters", {"top_p": 0.9, "top_k": 20, "min_p": 0.1, "min_tokens": 2}, 1, None),
        ("all tokens as vLLM also writes it", {}, 1, None),
        ("tokens that end it", {"stop": [3]}, 1, None),
        ("one stop string", {"stop": ["x"]}, 1, None),
        ("the sampled token's log-probability", {}, 1, None),
    ],
)
def test_sampling_params_are_understood(name, changes, n, seed, offline_vllm):
    assert name in ACCEPTED
    assert offline_vllm["accepted"][name] == [{**PLAIN, **changes}, n, seed]


@pytest.mark.parametrize("setting", REJECTED)
def test_settings_that_cannot_be_expressed_are_named(setting, offline_vllm):
    message = offline_vllm["rejected"][setting]
    assert message.startswith("ValueError: SamplingParams: got ")
    assert setting in message


def test_there_and_back(offline_vllm):
    stopped = asdict(SAMPLINGS["stopped"])
    stopped["stop"] = list(stopped["stop"])
    assert offline_vllm["there_and_back"] == [stopped, 1, 3]
