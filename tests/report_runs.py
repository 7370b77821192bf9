"""Run folders as runs write them, and what reports and figures of them hold."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trl_r1zero.evaluation import GradedCompletion, summarize, write_generations

Curve = tuple[str, list[float], list[float]]  # label, x, y


def write_metrics(folder: Path, lines: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def seed_run(
    folder: Path, seed: int, accuracies: list[float], key: str = "grpo_step", **settings: Any
) -> Path:
    """A run of which only validations are logged, at steps 0, 5, 10, ... and minutes 0, 1, 2, ...

    Its `config.json` has the seed, its `recipe.yaml` the further settings.
    """
    lines = [
        {"step": 5 * i, key: 5 * i, "elapsed_seconds": 60.0 * i, "eval_accuracy": accuracy,
         "eval_accuracy_stderr": 0.02}
        for i, accuracy in enumerate(accuracies)
    ]  # fmt: skip
    write_metrics(folder, lines)
    (folder / "config.json").write_text(json.dumps({"seed": seed}))
    if settings:
        recipe = "".join(f"{name}: {json.dumps(value)}\n" for name, value in settings.items())
        (folder / "recipe.yaml").write_text(recipe)
    return folder


def answered_run(
    folder: Path,
    seed: int,
    right: dict[int, str],
    key: str = "grpo_step",
    prompt: str = "What is {} + 1?",
    loss: float = 0.5,
    **settings: Any,
) -> Path:
    """A run with one update for each step, tables of generations, and a best model.

    Args:
        right: Step of a validation -> for each question 1 where it is answered right.
        prompt: With the number of the question.
        loss: Of every update.
        settings: Of `recipe.yaml`, beside the seed.
    """
    lines: list[dict] = []
    for step in range(max(right) + 1):
        if step > 0:
            update = {"loss": loss, "grad_norm": 0.1 * step, "entropy": 1.0, "reward": 0.5,
                      "length/mean": 10.0, "num_tokens": 100.0 * step}  # fmt: skip
            lines.append({"step": step, "elapsed_seconds": 60.0 * step, **update, key: step})
        if step in right:
            graded = [
                GradedCompletion(
                    prompt=prompt.format(number),
                    response=f"answer of step {step}",
                    ground_truth=str(number + 1),
                    rewards={"reward": float(bit), "answer_reward": float(bit)},
                    length=5,
                    truncated=False,
                )
                for number, bit in enumerate(map(int, right[step]))
            ]
            write_generations(graded, folder / "evaluations" / f"{key}_{step:05d}")
            metrics = {f"eval_{name}": value for name, value in summarize(graded).items()}
            lines.append({"step": step, "elapsed_seconds": 60.0 * step, **metrics, key: step})
    write_metrics(folder, lines)
    (folder / "best").mkdir()
    recipe = {"seed": seed, "train_batch_size": 8, "epochs_per_rollout_batch": 1, **settings}
    text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in recipe.items())
    (folder / "recipe.yaml").write_text(text)
    return folder


def cells_of(report: str, label: str, section: str = "") -> list[str]:
    """The cells behind a row's label, in the one table (of a section) that has it."""
    text = report.split(section)[1].split("\n## ", maxsplit=1)[0] if section else report
    rows = [line for line in text.splitlines() if line.startswith(f"| {label} ")]
    assert len(rows) == 1, report
    return [cell.strip() for cell in rows[0].strip("|").split("|")][1:]


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def keep_figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """A list that gets every figure that is written from now on."""
    figures = []
    save = Figure.savefig

    def keep_and_save(figure, *args, **kwargs):
        figures.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep_and_save)
    return figures


def curves_of(axes: Axes) -> list[Curve]:
    return [
        (line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines
    ]


def panels_of(figure: Figure) -> dict[str, list[Curve]]:
    """`title / label of the x-axis / its scale` -> curves."""
    return {
        f"{axes.get_title()} / {axes.get_xlabel()} / {axes.get_yscale()}": curves_of(axes)
        for axes in figure.axes
    }
