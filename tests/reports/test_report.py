"""Reports and curves from run folders, written here as a run writes them."""

import json
import math
import random
from pathlib import Path

import pytest
from report_runs import Curve, cells_of, keep_figures, panels_of, png_size, write_metrics

from trl_r1zero.evaluation import GradedCompletion, summarize, write_generations
from trl_r1zero.reports.plots import plot_run
from trl_r1zero.reports.report import write_report
from trl_r1zero.runs.logged_run import LoggedRun

N_QUESTIONS = 8
# Right or wrong per question: 2 of 8 before, 6 of 8 after; only question 1 becomes wrong.
RIGHT = {0: "11000000", 2: "11110000", 4: "10111110"}


def _validation(folder: Path, grpo_step: int, entropy: float | None = 0.5) -> dict:
    """Writes the generations of a validation; returns its line of metrics."""
    graded = [
        GradedCompletion(
            prompt=f"User: What is {number} + 1?\nAssistant: ",
            response=f"think {'more ' * grpo_step}</think> <answer>{number}</answer>",
            ground_truth=str(number + 1),
            rewards={"reward": float(right), "format_reward": 1.0, "answer_reward": float(right)},
            length=10 + grpo_step,
            truncated=False,
            entropy=entropy,
        )
        for number, right in enumerate(map(int, RIGHT[grpo_step]))
    ]
    path = folder / "evaluations" / f"grpo_step_{grpo_step:05d}"
    write_generations(graded, path)
    metrics = {f"eval_{name}": value for name, value in summarize(graded).items()}
    return {
        "step": grpo_step,
        "elapsed_seconds": 1.0 + 30.0 * grpo_step,
        **metrics,
        "eval_seconds": 1.0,
        "grpo_step": grpo_step,
    }


def _update(step: int, **more: float) -> dict:
    return {
        "step": step,
        "elapsed_seconds": 30.0 * step,
        "loss": -0.01 * step,
        "grad_norm": 0.5,
        "entropy": 1.0 - 0.1 * step,
        "reward": 0.1 * step,
        "format_reward": 0.9,
        "answer_reward": 0.1 * step,
        "truncated": 0.0,
        "zero_advantage_groups": 0.25,
        "length/mean": 10.0 + step,
        "seconds/step": 29.0,
        "seconds/generation": 15.0,
        "seconds/reward": 0.0,
        "seconds/forward": 4.0,
        "seconds/backward": 8.0,
        "grpo_step": step,
        **more,
    }


def _complete_run(folder: Path, seed: int = 0) -> Path:
    """Four GRPO steps of one update each, validated at 0, 2 and 4."""
    lines = [_validation(folder, 0)]
    lines += [_update(1), _update(2), _validation(folder, 2)]
    lines += [_update(3), _update(4), _validation(folder, 4)]
    lines.append({"step": 4, "elapsed_seconds": 122.0, "train_runtime": 122.0, "train_loss": 0.0})
    write_metrics(folder, lines)
    (folder / "best").mkdir()
    (folder / "best" / "best.json").write_text('{"grpo_step": 4, "eval_accuracy": 0.75}\n')
    (folder / "config.json").write_text(json.dumps({"seed": seed, "n_grpo_steps": 4}))
    environment = {
        "packages": {"torch": "2.13.0", "trl": "1.16.0"},
        "commit": "abc123",
        "device": "cpu",
        "num_processes": 1,
        "started": "2025-01-01T00:00:00+0000",
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "checkpoint-4").mkdir()
    return folder


def test_report_compares_validation_before_after_and_best(tmp_path):
    report = write_report(_complete_run(tmp_path / "run"))
    assert "What is missing" not in report
    assert cells_of(report, "after GRPO step") == ["0", "4", "4"]
    # sqrt(p (1 - p) / (n - 1)): sqrt(0.25 * 0.75 / 7) = 0.1637, the same for 0.75
    assert cells_of(report, "accuracy") == ["0.250 ± 0.164", "0.750 ± 0.164", "0.750 ± 0.164"]
    assert cells_of(report, "format rate") == ["1.000", "1.000", "1.000"]
    lengths = cells_of(report, "mean length (tokens)", section="## Validation")
    assert lengths == ["10.0", "14.0", "14.0"]
    assert cells_of(report, "time since the start (h:mm:ss)") == ["0:00:01", "0:02:01", "0:02:01"]


def test_best_is_the_first_of_the_highest_and_may_lie_before_the_end(tmp_path):
    lines = [{"grpo_step": step, "eval_accuracy": a, "elapsed_seconds": 1.0, "step": step}
             for step, a in ((0, 0.1), (2, 0.6), (4, 0.6), (6, 0.3))]  # fmt: skip
    report = write_report(write_metrics(tmp_path, lines))
    assert cells_of(report, "after GRPO step") == ["0", "6", "2"]
    assert cells_of(report, "accuracy") == ["0.100", "0.300", "0.600"]


def test_change_is_counted_by_question_with_a_paired_standard_error(tmp_path):
    report = " ".join(write_report(_complete_run(tmp_path / "run")).split())
    assert "8 questions 5 became right, 1 stayed wrong, 1 became wrong, 1 stayed right" in report
    # differences 5 x 1, 1 x -1, 2 x 0: mean 0.5, sum of squared deviations 6 - 8 * 0.25 = 4
    assert f"accuracy changed by +0.500 ± {math.sqrt(4 / (8 * 7)):.3f} " in report


def test_wall_time_is_split_over_all_of_it(tmp_path):
    report = write_report(_complete_run(tmp_path / "run"))
    # 4 updates of 15, 4 and 8 s, 3 validations of 1 s; 122 s in all
    assert cells_of(report, "generation") == ["0:01:00", "49%"]
    assert cells_of(report, "forward") == ["0:00:16", "13%"]
    assert cells_of(report, "backward") == ["0:00:32", "26%"]
    assert cells_of(report, "validation") == ["0:00:03", "2%"]
    assert cells_of(report, "rest (optimizer, saving, logging)") == ["0:00:11", "9%"]
    assert cells_of(report, "total") == ["0:02:02", ""]


def test_wall_time_weighs_a_line_with_the_updates_that_it_averages(tmp_path):
    # logging_steps 2, and the third update in the line of the summary
    lines = [_update(2), _update(3, train_runtime=90.0)]
    report = write_report(write_metrics(tmp_path, lines))
    assert cells_of(report, "generation")[0] == "0:00:45"


def test_rollouts_show_a_question_that_became_right_first(tmp_path):
    folder = _complete_run(tmp_path / "run")
    terminal = write_report(folder)
    markdown = (folder / "report.md").read_text()
    headings = [line for line in markdown.splitlines() if line.startswith("### ")]
    # became right 2 3 4 5 6, stayed wrong 7, became wrong 1, stayed right 0
    assert headings == [f"### Question {number}" for number in (2, 7, 1, 0, 3, 4)]
    assert [line for line in terminal.splitlines() if line.startswith("### ")] == headings[:2]
    first = markdown[markdown.index("### Question 2") : markdown.index("### Question 7")]
    assert "    User: What is 2 + 1?\n    Assistant:\n" in first
    assert "Before (wrong, 10 tokens):\n\n    think </think> <answer>2</answer>\n" in first
    assert "After (right, 14 tokens):\n\n    think more more more more </think>" in first


def test_long_and_unprintable_responses_are_cut_and_escaped(tmp_path):
    folder = _complete_run(tmp_path / "run")
    path = folder / "evaluations" / "grpo_step_00004.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["response"] = "a" * 3000 + "\x1b[31m\n```\n# no heading " + "字" * 3000
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    terminal = write_report(folder)
    markdown = (folder / "report.md").read_text()
    assert "\x1b" not in terminal + markdown
    total = 3000 + len("\\x1b[31m\n```\n# no heading ") + 3000
    assert f"[... {total - 2000} characters left out ...]" in " ".join(markdown.split())
    assert "a" * 90 in terminal and "字" * 90 in terminal
    rows[2]["response"] = "\x1b[31m\n```\n# no heading"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "    \\x1b[31m\n    ```\n    # no heading\n" in write_report(folder)


def test_terminal_text_fits_100_columns_but_for_the_path(tmp_path):
    folder = _complete_run(tmp_path / "run")
    terminal = write_report(folder)
    assert "![" not in terminal  # no picture in a terminal
    wide = [line for line in terminal.splitlines() if len(line) > 100]
    assert all(line == f"In {folder}:" for line in wide)


def test_files_on_disk_are_listed_with_what_they_are(tmp_path):
    folder = _complete_run(tmp_path / "run")
    report = write_report(folder)
    assert f"In {folder}:" in report
    assert cells_of(report, "best") == ["the model of best validation accuracy (after GRPO step 4)"]
    assert cells_of(report, "checkpoint-4") == ["to resume from"]
    assert cells_of(report, "curve.png") == ["its curves"]
    assert "![Curves of the run](curve.png)" in (folder / "report.md").read_text()


def test_run_that_stopped_early_without_entropies_says_so(tmp_path):
    folder = tmp_path / "run"
    lines = [_validation(folder, 0, entropy=None), _update(1)]
    write_metrics(folder, lines)
    (folder / "config.json").write_text('{"n_grpo_steps": 4}')
    report = write_report(folder)
    assert "The end of training: the last GRPO step logged is 1 of 4." in report
    assert "Before and after: there is only one validation." in report
    assert "Never logged: eval_entropy." in report
    assert cells_of(report, "accuracy") == ["0.250 ± 0.164"]
    assert "Validation (right, 10 tokens):" in report and "After" not in report
    assert "became" not in report


def test_resumed_run_that_broke_off_is_not_called_complete(tmp_path):
    lines = [_update(1), {"step": 1, "elapsed_seconds": 30.0, "train_runtime": 30.0}, _update(2)]
    report = write_report(write_metrics(tmp_path, lines))
    assert "the last GRPO step logged is 2 of an unknown number." in report
    lines.append({"step": 2, "elapsed_seconds": 60.0, "train_runtime": 30.0})
    assert "the last GRPO step" not in write_report(write_metrics(tmp_path, lines))


def test_run_without_validation_reports_its_training(tmp_path):
    report = write_report(write_metrics(tmp_path, [_update(step) for step in range(1, 21)]))
    assert "Validation: none was logged" in report
    assert "## Validation" not in report and "## Rollouts" not in report
    # means of updates 1, 2 and of 19, 20
    assert cells_of(report, "reward", section="## Training") == ["0.150", "1.950"]
    assert (tmp_path / "curve.png").is_file()


def test_missing_generations_of_a_validation_are_named(tmp_path):
    folder = _complete_run(tmp_path / "run")
    (folder / "evaluations" / "grpo_step_00000.jsonl").unlink()
    report = write_report(folder)
    assert "Rollouts: there is no evaluations/grpo_step_00000.jsonl." in report
    assert "## Rollouts" not in report


def test_run_with_nothing_logged_yet_gets_a_report_without_curves(tmp_path):
    report = write_report(write_metrics(tmp_path, []))
    assert "Training: no update was logged." in report
    assert not (tmp_path / "curve.png").exists()
    assert "curve.png" not in (tmp_path / "report.md").read_text()


def test_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="give the output folder of a run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def _drawn(monkeypatch, folder: Path) -> dict[str, list[Curve]]:
    """The panels of the figure that is written of a run."""
    figures = keep_figures(monkeypatch)
    assert plot_run(LoggedRun(folder), folder / "curve.png")
    return panels_of(figures[0])


def test_curves_have_the_logged_points(tmp_path, monkeypatch):
    run = LoggedRun(_complete_run(tmp_path))
    panels = _drawn(monkeypatch, tmp_path)
    accuracy = "Validation accuracy, ± 1 standard error"
    assert panels[f"{accuracy} / GRPO step / linear"] == [
        ("validation", [0, 2, 4], [0.25, 0.5, 0.75])
    ]
    minutes = panels[f"{accuracy} / wall-clock time (minutes) / linear"]
    assert minutes == [("validation", [1 / 60, 61 / 60, 121 / 60], [0.25, 0.5, 0.75])]
    assert panels["Gradient norm before clipping / GRPO step / linear"][0][2] == [0.5] * 4
    assert [label for label, _, _ in panels["Response length / GRPO step / linear"]] == [
        "training, all", "validation, all", "correct", "incorrect"
    ]  # fmt: skip
    assert len(panels) == len(run.kind.panels) - 1  # on-policy: no clip fraction
    assert png_size(tmp_path / "curve.png")[0] == 1200


def test_off_policy_curves_average_the_updates_of_a_grpo_step(tmp_path, monkeypatch):
    updates = [
        _update(1, grpo_step=1, clip_fraction=0.0, grad_norm=0.1),
        _update(2, grpo_step=1, clip_fraction=0.2, grad_norm=0.1),
        _update(3, grpo_step=2, clip_fraction=0.4, grad_norm=5.0),
    ]
    panels = _drawn(monkeypatch, write_metrics(tmp_path, updates))
    assert panels["Clipped tokens / GRPO step / linear"] == [("training", [1, 2], [0.1, 0.4])]
    assert "Gradient norm before clipping / GRPO step / log" in panels  # 0.1 to 5
    assert not any("accuracy" in title for title in panels)


def test_metrics_that_trl_logs_as_null_leave_a_gap(tmp_path, monkeypatch):
    panels = _drawn(monkeypatch, write_metrics(tmp_path, [_update(1), _update(2, reward=None)]))
    assert panels["Training reward / GRPO step / linear"] == [("training", [1], [0.1])]


def test_metrics_of_a_run_that_diverged_leave_a_gap(tmp_path, monkeypatch):
    lines = [_update(1), _update(2, grad_norm=math.nan), _update(3, grad_norm=math.inf)]
    panels = _drawn(monkeypatch, write_metrics(tmp_path, lines))
    norm = panels["Gradient norm before clipping / GRPO step / linear"]
    assert norm == [("training", [1], [0.5])]


def test_lines_are_told_apart(tmp_path):
    run = LoggedRun(_complete_run(tmp_path / "run"))
    assert [line["grpo_step"] for line in run.training] == [1, 2, 3, 4]
    assert [line["grpo_step"] for line in run.validations] == [0, 2, 4]


def test_curves_of_a_long_noisy_run_are_drawn(tmp_path):
    """As many and as rough numbers as a real run has, zeros in the gradient norm included."""
    rng = random.Random(0)
    lines = []
    for step in range(1, 201):
        norm = 0.0 if step == 50 else math.exp(rng.gauss(-1, 1))
        lines.append(_update(step, grad_norm=norm, clip_fraction=0.01 * rng.random()))
    run = LoggedRun(write_metrics(tmp_path, lines))
    assert plot_run(run, tmp_path / "curve.png", title="off-policy")
    assert png_size(tmp_path / "curve.png")[0] == 1200


def test_wrong_answers_are_listed_by_the_rule_that_decided(tmp_path):
    lines = [_validation(tmp_path, 0), _update(1), _validation(tmp_path, 4)]
    write_metrics(tmp_path, lines)
    table = tmp_path / "evaluations" / "grpo_step_00004.jsonl"
    rows = [json.loads(row) for row in table.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["rule"] = "identical" if row["reward"] else "integer_required"
        if number == 7:  # wrong, as question 1 is
            row |= {"format_reward": 0.0, "rule": "no_think_answer_tags"}
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = write_report(tmp_path)
    assert "## Why answers are wrong (last validation)" in report
    assert "| format reward 0                  | no_think_answer_tags | 1   |" in report
    assert "| format reward 1, answer reward 0 | integer_required     | 1   |" in report
    lenient = "lenient grader: wrong (different_value)"
    assert f"Ground truth 8, rule no_think_answer_tags, {lenient}:" in report
    assert "identical" not in report
