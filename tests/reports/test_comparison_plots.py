"""Figures of groups of runs: what is drawn, and that nothing overlaps."""

import json
import math

import pytest
from compared_groups import two_groups
from report_runs import answered_run, keep_figures, png_size, seed_run, write_metrics

from trl_r1zero.reports.compared import read_groups
from trl_r1zero.reports.comparison_plots import DPI, MAX_POINTS, plot_training, plot_validation


def _validation_figure(monkeypatch, groups, path):
    figures = keep_figures(monkeypatch)
    found, _ = read_groups(groups)
    plot_validation(found, path, "accuracy")
    return figures[0]


def _means(axes):
    """x and y of the thick lines."""
    return [
        (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if line.get_linewidth() > 1 and line.get_marker() != "x"
    ]


def test_validation_is_drawn_against_steps_time_and_tokens(tmp_path, monkeypatch):
    figure = _validation_figure(monkeypatch, two_groups(tmp_path), tmp_path / "v.png")
    *curves, ends = figure.axes
    assert [axes.get_xlabel() for axes in curves] == [
        "GRPO step", "wall-clock time (minutes)", "generated tokens"
    ]  # fmt: skip
    assert {axes.get_ylabel() for axes in curves} == {"accuracy"}
    assert _means(curves[0]) == [
        ([0, 2, 4], [0.125, 0.25, 0.5625]),
        ([0, 2, 4], [0.125, 0.5, 0.8125]),
    ]
    assert [x for x, _ in _means(curves[1])] == [[0, 2, 4]] * 2
    assert [x for x, _ in _means(curves[2])] == [[0, 160, 320]] * 2
    # a band for each, and two thin single runs
    assert len(curves[0].collections) == 2
    assert sum(line.get_linewidth() < 1 for line in curves[0].lines) == 4
    assert [text.get_text() for text in ends.get_yticklabels()] == ["base", "faster"]
    singles = [list(line.get_xdata()) for line in ends.lines if line.get_markersize() == 4]
    assert singles == [[0.5, 0.625], [0.75, 0.875]]
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["base (2 runs)", "faster (2 runs)"]
    assert png_size(tmp_path / "v.png")[0] == 1440


def test_tokens_that_are_not_known_have_no_panel(tmp_path, monkeypatch):
    groups = {"base": [seed_run(tmp_path / "a", 0, [0.2, 0.5])]}
    figure = _validation_figure(monkeypatch, groups, tmp_path / "v.png")
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "GRPO step", "wall-clock time (minutes)", "accuracy"
    ]  # fmt: skip


def _with_reward(folder, reward_of):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "eval_accuracy" in line:
            line["eval_reward"] = reward_of(line["eval_accuracy"])
    return write_metrics(folder, lines)


def test_a_reward_that_is_not_the_accuracy_has_a_row_of_its_own(tmp_path, monkeypatch):
    groups = {
        name: [_with_reward(run, lambda accuracy: 0.5 + accuracy / 2) for run in runs]
        for name, runs in two_groups(tmp_path).items()
    }
    figure = _validation_figure(monkeypatch, groups, tmp_path / "v.png")
    *curves, _ = figure.axes
    assert [axes.get_ylabel() for axes in curves] == ["accuracy"] * 3 + ["reward"] * 3
    assert [axes.get_xlabel() for axes in curves[:3]] == [axes.get_xlabel() for axes in curves[3:]]
    assert _means(curves[3])[0] == ([0, 2, 4], [0.5625, 0.625, 0.78125])
    assert [x for x, _ in _means(curves[5])] == [[0, 160, 320]] * 2


def test_a_reward_that_is_the_accuracy_is_not_drawn_twice(tmp_path, monkeypatch):
    groups = {
        name: [_with_reward(run, lambda accuracy: accuracy) for run in runs]
        for name, runs in two_groups(tmp_path).items()
    }
    figure = _validation_figure(monkeypatch, groups, tmp_path / "v.png")
    assert {axes.get_ylabel() for axes in figure.axes[:3]} == {"accuracy"}
    assert len(figure.axes) == 4


def test_a_short_run_is_a_thin_line_with_a_cross_and_in_no_mean(tmp_path, monkeypatch):
    groups = two_groups(tmp_path)
    groups["base"].append(answered_run(tmp_path / "short", 2, {0: "10000000", 2: "11111111"}))
    figure = _validation_figure(monkeypatch, groups, tmp_path / "v.png")
    assert _means(figure.axes[0])[0] == ([0, 2, 4], [0.125, 0.25, 0.5625])
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in crosses] == [([2], [1.0])]
    [legend] = figure.legends
    assert legend.get_texts()[0].get_text() == "base (2 of 3 runs)"


def test_an_interval_beyond_what_an_accuracy_can_be_does_not_set_the_scale(tmp_path, monkeypatch):
    groups = {"base": [seed_run(tmp_path / str(s), s, [0.2, 0.1 + 0.7 * s]) for s in range(2)]}
    figure = _validation_figure(monkeypatch, groups, tmp_path / "v.png")
    low, high = figure.axes[-1].get_xlim()
    assert low == -0.02 and high == 1.02


def _training_figure(monkeypatch, groups, path):
    figures = keep_figures(monkeypatch)
    found, _ = read_groups(groups)
    assert plot_training(found, path)
    return {axes.get_title(): axes for axes in figures[0].axes}


def test_training_is_drawn_as_far_as_it_was_logged(tmp_path, monkeypatch):
    panels = _training_figure(monkeypatch, two_groups(tmp_path), tmp_path / "t.png")
    assert list(panels) == [
        "Training reward", "Token entropy", "Response length", "Gradient norm before clipping"
    ]  # fmt: skip
    norm = panels["Gradient norm before clipping"]
    assert norm.get_ylabel() == "L2 norm" and norm.get_xlabel() == "GRPO step"
    [(x, y), _] = _means(norm)
    assert x == [1, 2, 3, 4] and y == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_long_curves_are_thinned_and_lost_numbers_left_out(tmp_path, monkeypatch):
    def lines(seed):
        for step in range(1, 601):
            norm = math.nan if seed == 1 and step > 300 else 10.0 ** (step / 100)
            yield {"step": step, "elapsed_seconds": 1.0, "grpo_step": step, "grad_norm": norm}
        yield {"step": 600, "elapsed_seconds": 1.0, "grpo_step": 600, "eval_accuracy": 0.5}

    runs = [write_metrics(tmp_path / str(seed), list(lines(seed))) for seed in range(2)]
    for seed, run in enumerate(runs):
        (run / "config.json").write_text(json.dumps({"seed": seed}))
    panels = _training_figure(monkeypatch, {"base": runs}, tmp_path / "t.png")
    [(x, y)] = _means(panels["Gradient norm before clipping"])
    # The steps that both have, by 5.
    assert len(x) == MAX_POINTS and x[:2] == [3.0, 8.0] and x[-1] == 298.0
    assert y[0] == pytest.approx(sum(10 ** (step / 100) for step in range(1, 6)) / 5)
    assert panels["Gradient norm before clipping"].get_yscale() == "log"


def test_nothing_logged_is_nothing_drawn(tmp_path):
    found, _ = read_groups({"base": [seed_run(tmp_path / "a", 0, [0.2])]})
    assert not plot_training(found, tmp_path / "t.png")
    assert not (tmp_path / "t.png").exists()


@pytest.mark.parametrize(
    ("num_groups", "label"),
    [
        (2, "group_size {}"),
        (10, "loss_type reinforce_with_baseline, aggregation masked_normalize, lr 0.000{}"),
        (10, "{} " + "a name that is very long and of many words " * 5 + "{}"),
        (3, "y" * 70 + "{}" + "y" * 70),
    ],
)
def test_nothing_overlaps(tmp_path, monkeypatch, num_groups, label):
    groups = {
        label.replace("{}", str(number)): [
            answered_run(tmp_path / f"{number}-{seed}", seed, {0: "10", 2: "11"})
            for seed in range(2)
        ]
        for number in range(num_groups)
    }
    figures = keep_figures(monkeypatch)
    found, _ = read_groups(groups)
    plot_validation(found, tmp_path / "v.png", "accuracy")
    plot_training(found, tmp_path / "t.png")
    for figure in figures:
        figure.set_dpi(DPI)  # at which it was laid out: the size of text is not quite the same
        figure.canvas.draw()
        [legend] = figure.legends
        page = figure.bbox
        boxes = [axes.get_tightbbox() for axes in figure.axes] + [legend.get_window_extent()]
        for number, box in enumerate(boxes):
            assert page.x0 <= box.x0 and box.x1 <= page.x1
            assert page.y0 <= box.y0 and box.y1 <= page.y1
            assert not any(box.overlaps(other) for other in boxes[number + 1 :])
        names = [text.get_text() for text in legend.get_texts()]
        assert len(set(names)) == num_groups
    ticks = [text.get_text() for text in figures[0].axes[-1].get_yticklabels()]
    assert len(set(ticks)) == num_groups
    looks = {
        (line.get_color(), line.get_linestyle())
        for line in figures[0].axes[0].lines
        if line.get_linewidth() > 1
    }
    assert len(looks) == num_groups
