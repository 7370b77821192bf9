"""Reports and curves of SFT and of expert iteration runs, written here as these runs write them."""

import json
from pathlib import Path

import pytest
from report_runs import cells_of, keep_figures, panels_of, png_size, write_metrics

from trl_r1zero.evaluation import GradedCompletion, summarize, write_generations
from trl_r1zero.reports.report import write_report
from trl_r1zero.runs.logged_run import LoggedRun

ACCURACY = "Validation accuracy, ± 1 standard error"


def _validation(folder: Path, key: str, number: int, step: int, right: str, seconds: float) -> dict:
    """Writes the generations of a validation; returns its line of metrics."""
    graded = [
        GradedCompletion(
            prompt=f"What is {question} + 1?",
            response=f"response after {key} {number}",
            ground_truth=str(question + 1),
            rewards={"reward": float(r), "format_reward": 1.0, "answer_reward": float(r)},
            length=20,
            truncated=False,
            entropy=0.5,
        )
        for question, r in enumerate(map(int, right))
    ]
    write_generations(graded, folder / "evaluations" / f"{key}_{number:05d}")
    metrics = {f"eval_{name}": value for name, value in summarize(graded).items()}
    return {"step": step, "elapsed_seconds": seconds, **metrics, "eval_seconds": 1.0, key: number}


def _update(key: str, number: int, step: int, seconds: float, nll: float) -> dict:
    return {
        "step": step,
        "elapsed_seconds": seconds,
        "loss": nll,
        "nll": nll,
        "grad_norm": 0.5,
        "learning_rate": 2e-5,
        "entropy": 0.25,
        "length/mean": 30.0 + step,
        "length/max": 50.0,
        "tokens_per_second": 1000.0,
        "num_tokens": 640.0 * step,
        "seconds/step": 4.0,
        "seconds/forward": 1.0,
        "seconds/backward": 2.0,
        key: number,
    }


def _rollouts(ei_step: int, step: int, seconds: float, accuracy: float, kept: int) -> dict:
    """Of 10 questions, 4 rollouts each."""
    return {
        "step": step,
        "elapsed_seconds": seconds,
        "rollout_accuracy": accuracy,
        "rollout_accuracy_stderr": 0.05,
        "rollout_format_reward": 0.9,
        "rollout_pass@4": 2 * accuracy,
        "rollout_pass@4_stderr": 0.1,
        "rollout_kept": kept,
        "rollout_kept_share": kept / 40,
        "rollout_questions_kept_share": 0.5,
        "rollout_entropy": 0.75,
        "rollout_length": 24.0,
        "rollout_length_correct": 20.0,
        "rollout_length_incorrect": 25.0,
        "rollout_truncated": 0.1,
        "rollout_seconds": 12.0,
        "ei_step": ei_step,
    }


def _summary(step: int, seconds: float) -> dict:
    return {"step": step, "elapsed_seconds": seconds, "train_runtime": seconds, "train_loss": 0.5}


def _sft_run(folder: Path) -> Path:
    lines = [
        _validation(folder, "train_step", 0, 0, "1000", 1.0),
        *[_update("train_step", step, step, 1.0 + 4 * step, 1.0 / step) for step in (1, 2, 3, 4)],
        _validation(folder, "train_step", 4, 4, "0111", 18.0),
        _summary(4, 20.0),
    ]
    write_metrics(folder, lines)
    (folder / "best").mkdir()
    (folder / "best" / "best.json").write_text('{"train_step": 4, "eval_accuracy": 0.75}')
    (folder / "config.json").write_text('{"max_steps": 4}')
    (folder / "data_report.json").write_text("{}")
    (folder / "data_report.md").write_text("")
    return folder


def _ei_run(folder: Path) -> Path:
    """Two EI steps of two updates each."""
    lines = [
        _validation(folder, "ei_step", 0, 0, "1000", 1.0),
        _rollouts(1, 0, 15.0, accuracy=0.2, kept=8),
        _update("ei_step", 1, 1, 20.0, nll=0.8),
        _update("ei_step", 1, 2, 24.0, nll=0.6),
        _validation(folder, "ei_step", 1, 2, "1100", 25.0),
        _rollouts(2, 2, 40.0, accuracy=0.45, kept=18),
        _update("ei_step", 2, 3, 45.0, nll=0.5),
        _update("ei_step", 2, 4, 49.0, nll=0.3),
        _validation(folder, "ei_step", 2, 4, "0111", 50.0),
        _summary(4, 50.0),
    ]
    write_metrics(folder, lines)
    (folder / "best").mkdir()
    (folder / "best" / "best.json").write_text('{"ei_step": 2, "eval_accuracy": 0.75}')
    (folder / "config.json").write_text('{"n_ei_steps": 2, "max_steps": -1}')
    (folder / "expert_iteration").mkdir()
    return folder


def test_report_of_an_sft_run(tmp_path):
    report = write_report(_sft_run(tmp_path / "run"))
    assert "What is missing" not in report and "reward" not in report and "GRPO" not in report
    assert "## Rollouts\n" not in report
    assert cells_of(report, "after update") == ["0", "4", "4"]
    # sqrt(0.25 * 0.75 / 3)
    assert cells_of(report, "accuracy") == ["0.250 ± 0.250", "0.750 ± 0.250", "0.750 ± 0.250"]
    training = "## Training"
    assert cells_of(report, "negative log-likelihood (nats per token)") == ["1.000", "0.250"]
    assert cells_of(report, "mean length (tokens)", training) == ["31.0", "34.0"]
    assert cells_of(report, "learning rate", training) == ["2e-05", "2e-05"]
    # 4 updates of 1 and 2 s, 2 validations of 1 s, of 20 s
    assert cells_of(report, "forward") == ["0:00:04", "20%"]
    assert cells_of(report, "backward") == ["0:00:08", "40%"]
    assert cells_of(report, "validation") == ["0:00:02", "10%"]
    assert cells_of(report, "rest (optimizer, saving, logging)") == ["0:00:06", "30%"]
    assert cells_of(report, "best") == ["the model of best validation accuracy (after update 4)"]
    assert cells_of(report, "data_report.md") == ["what the data doctor saw"]
    # Rollouts come from the tables of updates 0 and 4.
    assert "Of 4 questions 3 became right, 0 stayed wrong, 1 became wrong" in report
    assert "response after train_step 4" in report


def test_report_of_an_ei_run(tmp_path):
    folder = _ei_run(tmp_path / "run")
    report = write_report(folder)
    assert "What is missing" not in report and "GRPO" not in report
    assert cells_of(report, "after EI step") == ["0", "2", "2"]
    assert cells_of(report, "EI step", "## Rollouts\n") == [
        "questions", "accuracy", "pass@4", "kept", "share", "length", "entropy"
    ]  # fmt: skip
    assert cells_of(report, "1", "## Rollouts\n") == [
        "10", "0.200 ± 0.050", "0.400 ± 0.100", "8", "0.200", "24.0", "0.750"
    ]  # fmt: skip
    assert cells_of(report, "2", "## Rollouts\n") == [
        "10", "0.450 ± 0.050", "0.900 ± 0.100", "18", "0.450", "24.0", "0.750"
    ]  # fmt: skip
    assert cells_of(report, "negative log-likelihood (nats per token)") == ["0.800", "0.300"]
    # 4 updates of 1 and 2 s, 2 times 12 s of rollouts, 3 validations of 1 s, of 50 s
    assert cells_of(report, "rollouts", "## Wall time") == ["0:00:24", "48%"]
    assert cells_of(report, "backward") == ["0:00:08", "16%"]
    assert cells_of(report, "rest (optimizer, saving, logging)") == ["0:00:11", "22%"]
    assert cells_of(report, "best") == ["the model of best validation accuracy (after EI step 2)"]
    assert cells_of(report, "expert_iteration") == ["kept rollouts of each EI step"]
    assert "Of 4 questions 2 became right" not in report  # of the last validation, not of step 1
    assert "Of 4 questions 3 became right" in report
    assert all(len(line) <= 100 for line in report.splitlines() if str(folder) not in line)


def test_curves_of_an_sft_run(tmp_path, monkeypatch):
    figures = keep_figures(monkeypatch)
    write_report(_sft_run(tmp_path / "run"))
    panels = panels_of(figures[0])
    assert list(panels) == [
        f"{ACCURACY} / update / linear",
        f"{ACCURACY} / wall-clock time (minutes) / linear",
        "Negative log-likelihood of the responses / update / linear",
        "Response length / update / linear",
        "Token entropy / update / linear",
        "Gradient norm before clipping / update / linear",
    ]
    assert panels[f"{ACCURACY} / update / linear"] == [("validation", [0, 4], [0.25, 0.75])]
    nll = panels["Negative log-likelihood of the responses / update / linear"]
    assert nll == [("training", [1, 2, 3, 4], [1, 1 / 2, 1 / 3, 1 / 4])]
    assert png_size(tmp_path / "run" / "curve.png")[0] == 1200


def test_curves_of_an_ei_run(tmp_path, monkeypatch):
    figures = keep_figures(monkeypatch)
    write_report(_ei_run(tmp_path / "run"))
    panels = panels_of(figures[0])
    accuracy = "Accuracy, ± 1 standard error\n(rollouts of EI step k at k - 1)"
    # Rollouts of step 1 are of the policy that validation 0 saw.
    assert panels[f"{accuracy} / EI step / linear"] == [
        ("validation", [0, 1, 2], [0.25, 0.5, 0.75]),
        ("rollouts", [0, 1], [0.2, 0.45]),
        ("rollouts, pass@4", [0, 1], [0.4, 0.9]),
    ]
    bands = [
        [vertices for vertices in path.vertices.tolist() if vertices[0] == 1]
        for collection in figures[0].axes[0].collections
        for path in collection.get_paths()
    ]
    # ± 0.05 and ± 0.1 at step 2, which is drawn at 1
    assert {round(y, 9) for _, y in bands[1]} == {0.4, 0.5}
    assert {round(y, 9) for _, y in bands[2]} == {0.8, 1.0}
    assert panels["Kept rollouts / EI step / linear"] == [
        ("of rollouts", [1, 2], [0.2, 0.45]),
        ("of questions, any kept", [1, 2], [0.5, 0.5]),
    ]
    # the mean of the updates of a step
    nll = panels["Negative log-likelihood of the responses / EI step / linear"]
    assert nll == [("training", [1, 2], [pytest.approx(0.7), pytest.approx(0.4)])]
    assert panels["Response length / EI step / linear"][0][2] == [31.5, 33.5]
    assert len(panels) == 7


def test_ei_run_that_broke_off_after_rollouts_of_which_none_was_kept(tmp_path):
    folder = tmp_path / "run"
    lines = [_validation(folder, "ei_step", 0, 0, "00", 1.0), _rollouts(1, 0, 15.0, 0.0, 0)]
    del lines[1]["rollout_entropy"]
    write_metrics(folder, lines)
    (folder / "config.json").write_text('{"n_ei_steps": 5}')
    report = write_report(folder)
    assert "The end of training: the last EI step logged is 1 of 5." in report
    assert "Training: no update was logged." in report
    assert "Never logged: rollout_entropy." in report
    # No share of the rollouts tells how many there were.
    assert cells_of(report, "1", "## Rollouts\n")[0] == "-"
    assert cells_of(report, "1", "## Rollouts\n")[-1] == "-"
    assert (folder / "curve.png").is_file()
    lines[1]["rollout_num_examples"] = 10.0
    assert cells_of(write_report(write_metrics(folder, lines)), "1", "## Rollouts\n")[0] == "10"


def test_rollouts_that_a_resumed_run_samples_anew_have_one_row(tmp_path):
    lines = [_rollouts(1, 0, 15.0, 0.2, 8), _rollouts(1, 0, 30.0, 0.3, 12)]
    report = write_report(write_metrics(tmp_path, lines))
    assert cells_of(report, "1", "## Rollouts\n")[3] == "12"
    assert cells_of(report, "rollouts", "## Wall time") == ["0:00:24", "80%"]


def test_resumed_ei_run_that_broke_off_in_its_rollouts_is_not_called_complete(tmp_path):
    lines = [_update("ei_step", 1, 1, 9.0, 0.5), _summary(1, 10.0), _rollouts(2, 1, 20.0, 0.2, 8)]
    report = write_report(write_metrics(tmp_path, lines))
    assert "the last EI step logged is 2 of an unknown number." in report


def test_sft_run_that_counts_epochs_has_no_planned_number_of_updates(tmp_path):
    write_metrics(tmp_path, [_update("train_step", 3, 3, 9.0, 0.5)])
    (tmp_path / "config.json").write_text('{"max_steps": -1}')
    assert "the last update logged is 3 of an unknown number." in write_report(tmp_path)
    (tmp_path / "config.json").write_text('{"max_steps": 8}')
    assert "the last update logged is 3 of 8." in write_report(tmp_path)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"n_grpo_steps": 9, "max_steps": -1}, "GRPO step logged is 0 of 9"),
        ({"n_ei_steps": 9, "max_steps": -1}, "EI step logged is 0 of 9"),
        ({"max_steps": 9}, "update logged is 0 of 9"),
    ],
)
def test_before_the_first_line_the_settings_tell_the_kind(tmp_path, config, name):
    write_metrics(tmp_path, [])
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert name in write_report(tmp_path)


def test_lines_are_told_apart(tmp_path):
    run = LoggedRun(_ei_run(tmp_path / "run"))
    assert run.kind.step_key == "ei_step"
    assert [line["step"] for line in run.training] == [1, 2, 3, 4]
    assert [line["ei_step"] for line in run.validations] == [0, 1, 2]
    assert [line["ei_step"] for line in run.rollouts] == [1, 2]
    assert run.largest_k == 4
    more = [line | {"rollout_pass@16": 0.5} for line in run.lines]
    assert LoggedRun(write_metrics(tmp_path / "more", more)).largest_k == 16
    assert LoggedRun(write_metrics(tmp_path / "none", run.training)).largest_k is None
    assert LoggedRun(write_metrics(tmp_path / "end", [_summary(4, 20.0)])).training == []


def test_lines_of_two_kinds_in_one_file_are_an_error(tmp_path):
    lines = [_update("ei_step", 1, 1, 9.0, 0.5), _update("train_step", 1, 1, 9.0, 0.5)]
    write_metrics(tmp_path, lines)
    message = "metrics.jsonl has lines with train_step and with ei_step, but the lines of a run"
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)
