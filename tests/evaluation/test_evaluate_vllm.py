"""`evaluate_vllm` on a `vllm.LLM`, and on another engine."""

import json
from pathlib import Path

import pytest
from offline_vllm import PROMPTS, TRUTHS

from trl_r1zero import SamplingConfig, evaluate_vllm
from trl_r1zero.generation import TransformersEngine
from trl_r1zero.rewards import r1_zero_reward_fn

SAMPLING = SamplingConfig(max_tokens=12, stop=("</answer>",))
REPORTS = {"results.jsonl", "summary.json", "report.md", "report.html", "evaluation.json"}


@pytest.fixture
def engine(tiny_model, tokenizer):
    return TransformersEngine(tiny_model, tokenizer)


# Any engine


def test_results_and_metrics(engine, tmp_path):
    results, metrics = evaluate_vllm(
        engine, r1_zero_reward_fn, PROMPTS, TRUTHS, SAMPLING, tmp_path / "out"
    )
    assert [row["prompt"] for row in results] == PROMPTS
    assert [row["ground_truth"] for row in results] == TRUTHS
    for row in results:
        graded = r1_zero_reward_fn(row["response"], row["ground_truth"])
        assert {name: row[name] for name in graded} == graded
        assert 0 < row["length"] <= 12
    assert metrics["num_examples"] == len(PROMPTS)
    assert metrics["accuracy"] == sum(row["answer_reward"] for row in results) / len(PROMPTS)
    assert {path.name for path in (tmp_path / "out").iterdir()} == REPORTS
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == results
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == metrics


def test_nothing_is_written_without_a_path(engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate_vllm(engine, r1_zero_reward_fn, PROMPTS, TRUTHS, SAMPLING)
    assert list(tmp_path.iterdir()) == []


def test_any_reward_function_and_ground_truth(engine):
    def longer_than(response: str, ground_truth: int) -> dict[str, float]:
        return {"reward": float(len(response) > ground_truth)}

    results, metrics = evaluate_vllm(engine, longer_than, PROMPTS[:2], [0, 10_000], SAMPLING)
    assert [row["reward"] for row in results] == [1.0, 0.0]
    assert metrics["accuracy"] == 0.5


def test_what_is_refused(engine):
    with pytest.raises(ValueError, match="got 8 prompts but 1 ground truths"):
        evaluate_vllm(engine, r1_zero_reward_fn, PROMPTS, ["1"], SAMPLING)
    with pytest.raises(TypeError, match=r"a vllm.SamplingParams or a .*SamplingConfig, got dict"):
        evaluate_vllm(engine, r1_zero_reward_fn, PROMPTS, TRUTHS, {"temperature": 1.0})


# A vllm.LLM, with the SamplingParams of a user


@pytest.mark.slow
def test_an_llm_and_its_sampling_params(offline_vllm, served_model_folder):
    results, metrics = offline_vllm["evaluated"]
    assert [row["prompt"] for row in results] == [prompt for prompt in PROMPTS for _ in range(2)]
    assert [row["completion"] for row in results] == [0, 1] * len(PROMPTS)
    assert metrics["num_completions"] == 2
    assert "pass@2" in metrics
    for first, second in zip(results[::2], results[1::2], strict=True):
        assert first["response"] != second["response"]
    folder = Path(offline_vllm["folder"])
    assert {path.name for path in folder.iterdir()} == REPORTS
    facts = json.loads((folder / "evaluation.json").read_text())
    assert facts["settings"]["model"] == str(served_model_folder)
    assert facts["seed"] == 5


@pytest.mark.slow
def test_the_seed_decides_the_answers(offline_vllm):
    responses = {
        name: [row["response"] for row in offline_vllm[name][0]]
        for name in ("evaluated", "evaluated_again", "evaluated_otherwise")
    }
    assert responses["evaluated"] == responses["evaluated_again"]
    assert responses["evaluated"] != responses["evaluated_otherwise"]
