"""An evaluation from prompts to files: what is written, and that no row is lost or doubled."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_evaluation
from folders import holds
from tiny_evaluation import (
    NUM_COMPLETIONS,
    NUM_EXAMPLES,
    NUM_ROWS,
    PROMPT,
    evaluate_tiny,
    tiny_engine,
    tiny_examples,
)
from tiny_models import REPOSITORY

from trl_r1zero import SamplingConfig, r1_zero_reward_fn
from trl_r1zero.evaluation import evaluate, graded_completion
from trl_r1zero.generation import Completion, TransformersEngine, in_order, row_seeds
from trl_r1zero.grading import Grade, Grader

FILES = {"evaluation.json", "report.html", "report.md", "results.jsonl", "summary.json"}


def with_column(**columns) -> Grader:
    return Grader(lambda response, truth: Grade({"reward": 1.0}, columns=columns))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_bytes().splitlines()]


def facts(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def outline(rows: list[dict]) -> list[tuple]:
    return [(row["example"], row["completion"], row["response"], row["reward"]) for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[Path, object]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, evaluate_tiny(folder)


class BreaksAfterSeven(TransformersEngine):
    """Fails as a server does that dies: some rows came, the others never will."""

    closed = False

    def stream(self, *arguments):
        try:
            for number, row in enumerate(super().stream(*arguments)):
                if number == 7:
                    raise ConnectionError("the server is gone")
                yield row
        finally:
            self.closed = True


# What is sampled and written


def test_the_engine_gets_every_prompt_with_its_own_seed(uninterrupted):
    """The same as calling the engine by hand."""
    engine = tiny_engine()
    ids = [
        engine.tokenizer(example["prompt"])["input_ids"]
        for example in tiny_examples()
        for _ in range(NUM_COMPLETIONS)
    ]
    seeds = row_seeds(0, "eval", 0, range(NUM_ROWS))
    sampling = SamplingConfig(max_tokens=12, stop=PROMPT.stop)
    completions = in_order(engine.stream(ids, sampling, seeds))
    _, evaluation = uninterrupted
    assert [row.response for row in evaluation.rows] == [c.text for c in completions]
    assert len({row.response for row in evaluation.rows}) == NUM_ROWS
    assert [row.length for row in evaluation.rows] == [len(c.token_ids) for c in completions]
    by_hand = [sum(c.log_probs) / len(c.log_probs) for c in completions]
    assert [r.extra["mean_log_prob"] for r in evaluation.rows] == pytest.approx(by_hand)
    assert evaluation.summary["num_tokens"] == sum(len(c.token_ids) for c in completions)


def test_files(uninterrupted):
    folder, evaluation = uninterrupted
    assert {path.name for path in folder.iterdir()} == FILES
    rows = lines(folder)
    assert rows == [row.as_row() for row in evaluation.rows]
    assert [(row["example"], row["completion"]) for row in rows] == [
        (i, k) for i in range(NUM_EXAMPLES) for k in range(NUM_COMPLETIONS)
    ]
    assert set(rows[0]) == {
        *("example", "completion", "question", "prompt", "response", "ground_truth"),
        *("reward", "format_reward", "answer_reward", "rule", "answer", "length"),
        *("truncated", "entropy", "finish_reason", "mean_log_prob"),
    }
    first = tiny_examples()[0]
    assert {name: rows[0][name] for name in first} == first
    assert json.loads((folder / "summary.json").read_text()) == evaluation.summary
    about = facts(folder)
    assert about["settings"] == {"model": "tiny", "task": "chain_arithmetic"}
    assert about["sampling"]["max_tokens"] == 12
    assert (about["engine"], about["seed"]) == ("transformers", 0)
    assert about["reward"] == "tiny_evaluation.evaluate_tiny.<locals>.odd_length"
    assert about["seconds"] == pytest.approx(evaluation.summary["seconds"], abs=1e-3)


def test_nothing_is_written_without_a_folder(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluation = evaluate_tiny(None)
    assert list(tmp_path.iterdir()) == []
    timing = {"seconds", "examples_per_second", "completions_per_second", "tokens_per_second"}
    expected = uninterrupted[1].summary
    assert evaluation.summary.keys() == expected.keys()
    assert all(evaluation.summary[key] == expected[key] for key in expected.keys() - timing)


def test_a_data_set_and_its_metadata(tmp_path):
    examples = [
        {"prompt": "1", "ground_truth": ["2", "3"], "level": 3, "subject": None},
        {"prompt": "2", "ground_truth": 2, "metadata": {"level": 1}},
    ]
    rows = evaluate_tiny(tmp_path, examples=examples, num_completions=1).rows
    assert [row.extra.get("metadata") for row in rows] == [{"level": 3}, {"level": 1}]
    assert [row["ground_truth"] for row in lines(tmp_path)] == [["2", "3"], 2]


# Going on


def test_killed_and_started_again(uninterrupted, tmp_path):
    script = Path(tiny_evaluation.__file__)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), "0.2"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    path = tmp_path / "results.jsonl"
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < 8:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9
    killed = path.read_bytes()
    num_killed = killed.count(b"\n")
    assert 8 <= num_killed < NUM_ROWS
    before = facts(tmp_path)
    # Of these grades each took 0.2 s; the last second may not have been saved.
    assert before["seconds"] > 0.2 * num_killed - 1.3

    evaluation = evaluate_tiny(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == FILES
    rows = lines(tmp_path)
    assert outline(rows) == outline(lines(uninterrupted[0]))
    assert [row.as_row() for row in evaluation.rows] == rows
    assert all(json.loads(line) in rows for line in killed.split(b"\n")[:num_killed])
    after = facts(tmp_path)
    assert after["started"] == before["started"]
    assert after["seconds"] > before["seconds"]
    assert evaluation.summary["examples_per_second"] == pytest.approx(
        NUM_EXAMPLES / evaluation.summary["seconds"]
    )


class CountsRows(TransformersEngine):
    rows = 0

    def stream(self, prompt_ids, sampling, seeds):
        self.rows += len(prompt_ids)
        return super().stream(prompt_ids, sampling, seeds)


def test_a_torn_last_line_is_dropped(uninterrupted, tmp_path):
    expected = (uninterrupted[0] / "results.jsonl").read_bytes()
    evaluate_tiny(tmp_path)
    cut = expected.splitlines(keepends=True)[:5]
    # Out of order, as completions end, and the last one cut off within a character or the brace.
    for torn in (cut[4][:-20], cut[4][:-1]):
        (tmp_path / "results.jsonl").write_bytes(cut[3] + cut[0] + cut[2] + torn)
        engine = tiny_engine(CountsRows)
        evaluate_tiny(tmp_path, engine)
        assert engine.rows == NUM_ROWS - 3
        assert outline(lines(tmp_path)) == outline(map(json.loads, expected.splitlines()))


def test_a_finished_evaluation_is_summarised_again(uninterrupted, tmp_path):
    first = evaluate_tiny(tmp_path)
    written = (tmp_path / "results.jsonl").read_bytes()
    for name in ("summary.json", "report.md", "report.html"):
        (tmp_path / name).unlink()
    engine = tiny_engine(CountsRows)
    again = evaluate_tiny(tmp_path, engine)
    assert engine.rows == 0
    assert again.rows == first.rows
    assert again.summary.pop("seconds") == pytest.approx(first.summary.pop("seconds"), abs=1e-3)
    assert again.summary["accuracy_stderr"] == first.summary["accuracy_stderr"]
    assert (tmp_path / "results.jsonl").read_bytes() == written
    assert {file.name for file in tmp_path.iterdir()} == FILES


def test_an_engine_that_breaks_leaves_what_is_done(uninterrupted, tmp_path):
    engine = tiny_engine(BreaksAfterSeven)
    with pytest.raises(ConnectionError, match="the server is gone") as error:
        evaluate_tiny(tmp_path, engine)
    assert f"7 of {NUM_ROWS} graded completions are in" in error.value.__notes__[0]
    assert engine.closed
    assert len(lines(tmp_path)) == 7
    assert {file.name for file in tmp_path.iterdir()} == {"evaluation.json", "results.jsonl"}
    assert facts(tmp_path)["seconds"] > 0
    # Broken again, and then well.
    with pytest.raises(ConnectionError):
        evaluate_tiny(tmp_path, engine)
    assert len(lines(tmp_path)) == 14
    evaluate_tiny(tmp_path)
    assert outline(lines(tmp_path)) == outline(lines(uninterrupted[0]))


def test_a_grader_that_breaks_ends_the_stream(tmp_path):
    def breaks(response, ground_truth):
        raise ZeroDivisionError

    engine = tiny_engine(BreaksAfterSeven)
    with pytest.raises(ZeroDivisionError):
        evaluate_tiny(tmp_path, engine, grader=Grader(breaks))
    assert engine.closed


# What is refused


def test_another_evaluation_is_refused(uninterrupted):
    folder = uninterrupted[0]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="holds another evaluation") as error:
        evaluate_tiny(
            folder,
            sampling=SamplingConfig(temperature=0.6, max_tokens=12, stop=PROMPT.stop),
            settings={"model": "other", "versions": {"vllm": "0.31"}},
            seed=1,
        )
    assert str(error.value).splitlines()[1:] == [
        "  seed: 0 there, 1 here",
        "  sampling.temperature: 1.0 there, 0.6 here",
        "  settings.model: 'tiny' there, 'other' here",
        "  settings.task: 'chain_arithmetic' there, 'nothing' here",
        "  settings.versions.vllm: 'nothing' there, '0.31' here",
        "Choose another folder, or delete this folder to start anew, or go on with the settings in "
        "its evaluation.json.",
    ]
    others = {
        "num_completions": {"num_completions": 2},
        "examples_sha256": {"examples": [{**e, "ground_truth": "1"} for e in tiny_examples()]},
        "num_examples": {"examples": tiny_examples()[:-1]},
        "reward": {"grader": Grader(r1_zero_reward_fn)},
    }
    for key, change in others.items():
        with pytest.raises(ValueError, match=f"\n  {key}: "):
            evaluate_tiny(folder, **change)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "report.md").write_text("# Run")
    with pytest.raises(ValueError, match=r"has report\.md but no evaluation\.json"):
        evaluate_tiny(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_a_line_that_is_no_row_is_named(tmp_path):
    evaluate_tiny(tmp_path)
    path = tmp_path / "results.jsonl"
    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(content[0] + b'{"example": 1}\n' + b"".join(content[2:]))
    with pytest.raises(ValueError, match=r"results\.jsonl:2: got b'\{\"example\": 1\}'"):
        evaluate_tiny(tmp_path)


def test_a_folder_at_work_is_refused(tmp_path):
    """The lock is of another process, for a process may lock what it has locked."""
    evaluate_tiny(tmp_path)
    with holds(tmp_path) as other:
        with pytest.raises(ValueError, match="is working in"):
            evaluate_tiny(tmp_path)
        other.stdin.close()
    evaluate_tiny(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"examples": []}, "examples is empty"),
        ({"num_completions": 0}, "num_completions must be at least 1, got 0"),
        ({"examples": [{"prompt": "1"}]}, r"example 0 lacks \['ground_truth'\], it has"),
        (
            {"examples": [{"prompt": [{"role": "user"}], "ground_truth": "1"}]},
            "example 0: prompt must be a str, got list",
        ),
        (
            {"examples": [{"prompt": p, "ground_truth": "1"} for p in ("1", "")]},
            "example 1: the prompt '' has no tokens",
        ),
        (
            {"examples": [{"prompt": "1", "ground_truth": "1", "x": float("nan")}]},
            "example 0 cannot be written as JSON",
        ),
        ({"settings": {"model": object()}}, "settings cannot be written as JSON"),
        ({"grader": Grader(lambda r, t: None)}, "must return a dict with the key 'reward', got N"),
        (
            {"grader": Grader(lambda r, t: {"score": 1.0})},
            "must return a dict with the key 'reward'",
        ),
        ({"grader": Grader(lambda r, t: {"reward": float("nan")})}, "must be a finite number"),
        (
            {"grader": with_column(prompt="p")},
            r"columns \['prompt'\]",
        ),
        (
            {"grader": with_column(n=3)},
            r"columns \['n'\] of a grade are",
        ),
        (
            {"grader": Grader(lambda r, t: {"reward": 1.0, f"part_{len(r) % 2}": 0.0})},
            "return the same keys always",
        ),
    ],
)
def test_wrong_arguments(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate_tiny(tmp_path / "new", **change)


def test_an_engine_that_leaves_rows_out(tmp_path):
    class Leaves(TransformersEngine):
        def stream(self, *arguments):
            return iter(list(super().stream(*arguments))[:-2])

    with pytest.raises(RuntimeError, match=f"'transformers' left out 2 of {NUM_ROWS} rows"):
        evaluate_tiny(tmp_path, tiny_engine(Leaves))

    class Doubles(TransformersEngine):
        def stream(self, *arguments):
            for row in super().stream(*arguments):
                yield from (row, row)

    with pytest.raises(RuntimeError, match=r"gave row \d+ twice"):
        evaluate_tiny(None, tiny_engine(Doubles))


# Grading


def test_graded_completion():
    example = {"prompt": "1+1=", "ground_truth": "2", "question": "1+1"}
    completion = Completion([5, 6], "2.", "length", [-1.0, -2.0], [0.5, 1.0])
    row = graded_completion(example, completion, {"reward": 1.0}, {"rule": "identical"})
    assert row.as_row() == {
        "prompt": "1+1=",
        "response": "2.",
        "ground_truth": "2",
        "reward": 1.0,
        "entropy": 0.75,
        "length": 2,
        "truncated": True,
        "finish_reason": "length",
        "mean_log_prob": -1.5,
        "rule": "identical",
    }
    # A backend that gives neither, and a token of probability 0.
    bare = graded_completion(example, Completion([5], "2", "stop"), {"reward": 1.0}, {})
    assert (bare.entropy, bare.extra["mean_log_prob"]) == (None, None)
    never = Completion([5], "2", "stop", [float("-inf")])
    assert graded_completion(example, never, {"reward": 1.0}, {}).extra["mean_log_prob"] is None


def test_the_model_is_as_before(tmp_path):
    engine = tiny_engine()
    engine.model.train()
    examples = [{"prompt": "1", "ground_truth": "2"}]
    grader = Grader(r1_zero_reward_fn)
    evaluate(engine, examples, grader, SamplingConfig(max_tokens=4))
    assert engine.model.training
