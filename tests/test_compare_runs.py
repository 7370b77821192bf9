"""Groups of runs side by side: what is one group, its numbers, its figure."""

import json
from itertools import pairwise

import pytest
from report_runs import cells_of, curves_of, keep_figures, png_size, seed_run

from trl_r1zero.compare_runs import write_groups
from trl_r1zero.report import main

HEADER = ["runs", "accuracy before", "after", "best", "wall minutes"]


def _runs(folder):
    """Two seeds with 128 examples, one of them longer; two with 1024; one with all."""
    sft = "train_step"
    return [
        seed_run(folder / "all", 0, [0.2, 0.5], sft, num_examples=None),
        seed_run(folder / "a", 0, [0.1, 0.6, 0.4], sft, num_examples=1024),
        seed_run(folder / "b", 1, [0.1, 0.4, 0.8], sft, num_examples=1024),
        seed_run(folder / "c", 0, [0.2, 0.3], sft, num_examples=128),
        seed_run(folder / "d", 1, [0.4, 0.8, 0.7], sft, num_examples=128),
    ]


def _first_cells(table):
    return [line.strip("|").split("|")[0].strip() for line in table.splitlines()[2:]]


def test_table_has_means_over_the_runs_of_a_group_in_natural_order(tmp_path):
    table = write_groups(_runs(tmp_path), tmp_path / "docs" / "groups.png", "num_examples")
    assert cells_of(table, "num_examples") == HEADER
    assert _first_cells(table)[:3] == ["128", "1024", "all"]
    # The standard error of two values is half their difference. Minutes of 128: 1 and 2.
    assert cells_of(table, "128") == ["2", "0.300 ± 0.100", "0.500 ± 0.200", "0.550 ± 0.250", "1.5"]
    assert cells_of(table, "1024") == [
        "2", "0.100 ± 0.000", "0.600 ± 0.200", "0.700 ± 0.100", "2.0"
    ]  # fmt: skip
    assert cells_of(table, "all") == ["1", "0.200", "0.500", "0.500", "1.0"]
    note = "Groups whose runs have their last validation at different steps: 128 (update 5, 10)."
    assert table.endswith(f"\n\n{note}\n")
    assert png_size(tmp_path / "docs" / "groups.png") == (1200, 520)


def test_figure_has_mean_curves_and_the_ends_of_the_runs(tmp_path, monkeypatch):
    figures = keep_figures(monkeypatch)
    write_groups(_runs(tmp_path), tmp_path / "groups.png", ["num_examples"])
    left, right = figures[0].axes
    assert left.get_xlabel() == "update" and right.get_xlabel() == "num_examples"
    assert left.get_ylabel() == right.get_ylabel() == "accuracy"
    approx = pytest.approx
    # of 128 only the steps that both runs have
    assert curves_of(left) == [
        ("128 (2 runs)", [0, 5], [approx(0.3), approx(0.55)]),
        ("1024 (2 runs)", [0, 5, 10], [approx(0.1), approx(0.5), approx(0.6)]),
        ("all (1 run)", [0, 5], [0.2, 0.5]),
    ]
    [legend] = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "128 (2 runs)", "1024 (2 runs)", "all (1 run)"
    ]  # fmt: skip
    assert legend.get_title().get_text() == "num_examples"
    # bands: 128 at step 0, 1024 at step 10; none for a single run
    assert len(left.collections) == 2
    for collection, step, low, high in zip(
        left.collections, (0, 10), (0.2, 0.4), (0.4, 0.8), strict=True
    ):
        [path] = collection.get_paths()
        ys = {round(y, 9) for x, y in path.vertices.tolist() if x == step}
        assert ys == {low, high}

    assert [label.get_text() for label in right.get_xticklabels()] == ["128", "1024", "all"]
    assert list(right.get_xticks()) == [0, 1, 2]
    singles = [line for line in right.lines if line.get_markersize() == 3.5]
    assert [list(line.get_ydata()) for line in singles] == [[0.3, 0.7], [0.4, 0.8], [0.5]]
    means = [container.lines[0] for container in right.containers]
    assert [line.get_ydata()[0] for line in means] == [approx(0.5), approx(0.6), 0.5]
    bars = [container.lines[2] for container in right.containers]
    assert [bool(of_group) for of_group in bars] == [True, True, False]
    [low, high] = bars[0][0].get_segments()[0][:, 1]
    assert (low, high) == (approx(0.3), approx(0.7))
    # Single runs stand beside their mean.
    for mean, single in zip(means, singles, strict=True):
        assert max(mean.get_xdata()) < min(single.get_xdata())


def test_recipe_goes_before_config_and_a_missing_value_has_a_name(tmp_path):
    run = seed_run(tmp_path / "a", 0, [0.2, 0.4], num_examples=None, beta=None)
    (run / "config.json").write_text(json.dumps({"num_examples": 5, "beta": 0.1, "lr": 1e-5}))
    other = seed_run(tmp_path / "b", 0, [0.2, 0.6], lr=1e-5)
    runs, path = [run, other], tmp_path / "groups.png"
    assert _first_cells(write_groups(runs, path, "num_examples")) == ["all"]
    assert _first_cells(write_groups(runs, path, "beta")) == ["unset"]
    # 1e-05 of a recipe and of a config.json are the same
    assert cells_of(write_groups(runs, path, "lr"), "1e-05")[0] == "2"


def test_values_are_ordered_and_written_as_in_recipes(tmp_path):
    values = [None, "no_clip", True, 256.0, False, 1e-5, "clip", 32, 256]
    runs = [seed_run(tmp_path / str(i), 0, [0.1, 0.2], x=value) for i, value in enumerate(values)]
    table = write_groups(runs, tmp_path / "groups.png", "x")
    assert _first_cells(table) == [
        "1e-05", "32", "256", "clip", "false", "no_clip", "true", "unset"
    ]  # fmt: skip
    assert cells_of(table, "256")[0] == "2"


def test_groups_of_two_settings(tmp_path, monkeypatch):
    figures = keep_figures(monkeypatch)
    runs = [
        seed_run(
            tmp_path / f"{n}{filtered}{seed}", seed, [0.1, 0.2],
            num_examples=n, filter_correct=filtered,
        )
        for n in (None, 512) for filtered in (True, False) for seed in (0, 1, 2)
    ]  # fmt: skip
    table = write_groups(runs, tmp_path / "groups.png", ["num_examples", "filter_correct"])
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[0] == ["num_examples", "filter_correct", *HEADER]
    assert [row[:3] for row in rows[2:]] == [
        ["512", "false", "3"],
        ["512", "true", "3"],
        ["all", "false", "3"],
        ["all", "true", "3"],
    ]
    left, right = figures[0].axes
    assert right.get_xlabel() == "num_examples / filter_correct"
    assert right.get_xticklabels()[0].get_text() == "512\nfalse"
    assert left.lines[0].get_label() == "512 / false (3 runs)"


@pytest.mark.parametrize(
    ("num_groups", "name"),
    [(1, "x"), (3, "x"), (6, "x"), (13, "x"), (6, "reinforce_with_baseline"), (2, "y" * 60)],
)
def test_nothing_in_the_figure_overlaps(tmp_path, monkeypatch, num_groups, name):
    figures = keep_figures(monkeypatch)
    runs = [
        seed_run(
            tmp_path / f"{group}-{seed}", seed, [0.1, 0.2 + 0.01 * seed], loss=f"{name}{group}"
        )
        for group in range(num_groups)
        for seed in range(3)
    ]
    write_groups(runs, tmp_path / "groups.png", "loss")
    figure = figures[0]
    left, right = figure.axes
    [legend] = figure.legends
    page = figure.bbox
    boxes = [axes.get_tightbbox() for axes in (left, right)] + [legend.get_window_extent()]
    for number, box in enumerate(boxes):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])
    ticks = [label.get_window_extent() for label in right.get_xticklabels()]
    is_aslant = right.get_xticklabels()[0].get_rotation() > 0
    assert is_aslant or all(a.x1 < b.x0 for a, b in pairwise(ticks))
    looks = {(line.get_color(), line.get_linestyle()) for line in left.lines}
    assert len(looks) == num_groups


def test_errors_say_what_to_do(tmp_path):
    runs = _runs(tmp_path)
    path = tmp_path / "groups.png"
    with pytest.raises(ValueError, match="run_folders is empty"):
        write_groups([], path, "seed")
    with pytest.raises(ValueError, match="group_by is empty; give a setting"):
        write_groups(runs, path, [])
    with pytest.raises(ValueError, match="no run has the setting 'num_exampels' in its recipe"):
        write_groups(runs, path, ["seed", "num_exampels"])
    with pytest.raises(ValueError, match="is given twice; give each run once"):
        write_groups([*runs, tmp_path / "x" / ".." / "a"], path, "seed")
    grpo = seed_run(tmp_path / "grpo", 0, [0.2], num_examples=128)
    with pytest.raises(ValueError, match=r"different kinds: .* counts train_step, .*grpo_step; "):
        write_groups([*runs, grpo], path, "num_examples")
    late = seed_run(tmp_path / "late", 0, [0.2, 0.3], "train_step", num_examples=128)
    lines = (late / "metrics.jsonl").read_text().replace('"train_step": ', '"train_step": 7')
    (late / "metrics.jsonl").write_text(lines)  # validated at 70 and 75
    with pytest.raises(ValueError, match="num_examples 128 have no validation at the same update"):
        write_groups([*runs, late], path, "num_examples")
    assert not path.exists()


def test_command_line_compares_groups(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folders = [str(run) for run in _runs(tmp_path)]
    main([*folders, "--group_by", "num_examples", "--output", "x.png"])
    shown = capsys.readouterr().out
    assert "| 1024 " in shown and shown.endswith("Groups: x.png\n")
    main([folders[0], "--group_by", "num_examples", "seed"])  # one group of one run
    assert "Groups: groups.png" in capsys.readouterr().out
    assert (tmp_path / "x.png").is_file() and (tmp_path / "groups.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--group_by", "sede"], "no run has the setting 'sede'"),
        (["a", "c", "--group_by", "seed", "--label_by", "seed"], "use one"),
        (["a", "--output", "x.png"], "for several folders"),
        (["a", "nothing", "--group_by", "seed"], "give the output folder of a run"),
    ],
)
def test_command_line_errors_have_no_traceback(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    _runs(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_recipe_that_cannot_be_read_is_an_error(tmp_path, capsys):
    run = seed_run(tmp_path / "a", 0, [0.2], num_examples=5)
    (run / "recipe.yaml").write_text("num_examples: [\n")
    with pytest.raises(SystemExit):
        main([str(run), "--group_by", "num_examples"])
    assert "recipe.yaml:2: " in capsys.readouterr().err
