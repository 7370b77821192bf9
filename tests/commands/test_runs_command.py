"""`trl-r1zero runs`: the index of runs, from their folders alone."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_runs import seed_run, write_metrics

from trl_r1zero import cli
from trl_r1zero.common.folder_lock import holding
from trl_r1zero.runs.index import Attempt, duration, index_run, record


def written_before(folder: Path, seconds: float) -> Path:
    when = time.time() - seconds
    os.utime(folder / "metrics.jsonl", (when, when))
    return folder


@pytest.fixture
def runs(tmp_path) -> Iterator[Path]:
    """One of each state; the lines of their validations are a minute apart."""
    config = json.dumps({"n_grpo_steps": 20})
    for name, age in (("running", 200), ("stopped", 400), ("failed", 3000)):
        folder = seed_run(tmp_path / "deep" / name, 0, [0.25, 0.5, 0.375])
        (folder / "config.json").write_text(config)
        written_before(folder, age)
    record(tmp_path / "deep" / "failed", Attempt("now", 1.0, "failed", "no memory left"))
    finished = tmp_path / "tuning"
    lines = [
        {"step": i, "elapsed_seconds": 90.0, "tuning_step": i, "eval_loss": loss}
        for i, loss in ((1, 2.5), (2, 2.25), (3, 2.75))
    ]
    summary = {"step": 3, "elapsed_seconds": 90.0, "train_runtime": 90.0}
    write_metrics(finished, [*lines, summary])
    (finished / "final").mkdir()
    (finished / "final" / "config.json").write_text("{}")
    written_before(finished, 3 * 86400)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "metrics.jsonl").write_text("not JSON\n")
    written_before(broken, 9 * 86400)
    diverged = write_metrics(
        tmp_path / "diverged",
        [{"step": 1, "elapsed_seconds": 1.0, "train_step": 1.0, "loss": float("nan")}],
    )
    written_before(diverged, 5 * 86400)
    with holding(tmp_path / "deep" / "running"):
        yield tmp_path


def shown(capsys, *arguments: str) -> str:
    assert cli.main(["runs", *arguments]) == 0
    return capsys.readouterr().out


def test_every_run_has_its_state(runs, capsys):
    found = json.loads(shown(capsys, str(runs), "--json"))
    assert [(Path(run["folder"]).name, run["state"]) for run in found] == [
        *(("running", "running"), ("stopped", "stopped"), ("failed", "failed")),
        *(("tuning", "finished"), ("diverged", "diverged"), ("broken", "unreadable")),
    ]
    running, tuning, diverged, broken = found[0], *found[3:]
    assert (running["kind"], running["step"], running["planned_steps"]) == ("grpo", 10, 20)
    assert (running["last"], running["best"], running["best_step"]) == (0.375, 0.5, 5)
    # Ten steps took two minutes, and ten are left.
    assert (running["seconds"], running["seconds_left"]) == (120, 120)
    assert running["age_seconds"] == pytest.approx(200, abs=60)
    assert running["size_bytes"] == sum(
        file.stat().st_size for file in (runs / "deep" / "running").iterdir()
    )
    assert (tuning["metric"], tuning["best"], tuning["best_step"]) == ("eval_loss", 2.25, 2)
    assert (diverged["kind"], diverged["step"]) == ("sft", 1)
    assert diverged["reason"] == "loss is nan at update 1"
    assert "metrics.jsonl" in broken["reason"]
    assert broken["step"] is None


@pytest.mark.parametrize("line", ["5", "[]", '{"step": 1}', "{"])
def test_what_is_no_metrics_of_a_run(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n")
    run = index_run(tmp_path)
    assert (run.state, run.kind) == ("unreadable", None)
    assert run.reason.startswith(str(tmp_path / "metrics.jsonl"))


def test_progress_in_words(runs):
    words = index_run(runs / "deep" / "running").progress()
    assert words == "GRPO step 10/20, accuracy 0.375, 2 min left"
    assert index_run(runs / "broken").progress() == ""


def test_the_table(runs, capsys):
    text = shown(capsys, str(runs))
    rows = [[cell.strip() for cell in line.split("|")[2:-2]] for line in text.splitlines()]
    assert rows[2][:5] == ["grpo", "running", "10/20, 2 min left", "0.375", "0.500 at 5"]
    assert rows[3][:3] == ["grpo", "stopped", "10/20"]
    assert rows[5] == ["instruction_tuning", "finished", "3/?", "2.750 (loss)", "2.250 at 2", "3 d"]
    assert rows[6][:5] == ["sft", "diverged", "1/?", "-", "-"]
    assert f"{runs / 'deep' / 'failed'}: no memory left" in text.splitlines()


def test_a_run_alone_and_none(runs, tmp_path, capsys):
    assert len(json.loads(shown(capsys, str(runs / "tuning"), "--json"))) == 1
    (tmp_path / "none").mkdir()
    assert "there are no runs in it" in shown(capsys, str(tmp_path / "none"))


def test_no_folder(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["runs", str(tmp_path / "none")])
    assert caught.value.code == 2
    assert "none is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"), [(7, "7 s"), (200, "3 min"), (9000, "2.5 h"), (3e5, "3 d")]
)
def test_times_in_words(seconds, words):
    assert duration(seconds) == words
