"""How far a run is, from the files that a run writes."""

import json
from pathlib import Path

import pytest

from trl_r1zero.runs.index import Attempt, diverged_at, record, run_state

UPDATE = {"step": 1, "grpo_step": 1, "elapsed_seconds": 5.0, "loss": 0.1, "grad_norm": 1.0}
SUMMARY = {"step": 1, "elapsed_seconds": 9.0, "train_runtime": 9.0}


def metrics(folder: Path, *lines: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def final_model(folder: Path, name: str = "config.json") -> None:
    (folder / "final").mkdir(parents=True)
    (folder / "final" / name).write_text("{}")


def test_nothing_is_there(tmp_path):
    assert run_state(tmp_path / "nowhere").status == "missing"
    assert run_state(tmp_path).status == "missing"


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_finished_is_a_summary_and_a_model(tmp_path, name):
    metrics(tmp_path, UPDATE, SUMMARY)
    assert run_state(tmp_path).status == "stopped"  # killed before the model was there
    final_model(tmp_path, name)
    assert run_state(tmp_path).status == "finished"
    assert run_state(tmp_path).seconds == 9.0


def test_a_resumed_run_that_broke_off_again_is_not_finished(tmp_path):
    metrics(tmp_path, UPDATE, SUMMARY, {**UPDATE, "step": 2})
    final_model(tmp_path)
    assert run_state(tmp_path).status == "stopped"


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_divergence(tmp_path, name, value):
    lines = [UPDATE, {**UPDATE, "step": 2, name: value}, SUMMARY]
    metrics(tmp_path, *lines)
    final_model(tmp_path)
    assert run_state(tmp_path).status == "diverged"
    assert run_state(tmp_path).reason == f"{name} is {value} at update 2"
    assert diverged_at(lines[:1]) == ""


def test_attempts_are_recorded_and_their_time_added(tmp_path):
    record(tmp_path, Attempt("t", 10.0, "failed", "exit status 1"))
    assert run_state(tmp_path).status == "failed"
    assert run_state(tmp_path).reason == "exit status 1"
    record(tmp_path, Attempt("t", 5.0, "stopped"))
    assert run_state(tmp_path).status == "stopped"
    metrics(tmp_path, UPDATE, SUMMARY)
    final_model(tmp_path)
    record(tmp_path, Attempt("t", 7.0, "finished", devices="0,1"))
    assert (run_state(tmp_path).status, run_state(tmp_path).seconds) == ("finished", 22.0)
    assert len(json.loads((tmp_path / "attempts.json").read_text())) == 3
