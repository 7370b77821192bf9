"""Run folders as runs write them, and what reports and figures of them hold."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
