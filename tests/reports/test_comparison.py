"""The report of an experiment: its numbers and its sentences."""

import json
import math

import pytest
from compared_groups import VARIANT, compare_groups, two_groups
from report_runs import answered_run, cells_of, seed_run, write_metrics

from trl_r1zero.reports import comparison


@pytest.fixture(autouse=True)
def blank_figures(monkeypatch):
    """Figures take a second each; `test_comparison_pages.py` writes real ones."""
    monkeypatch.setattr(comparison, "plot_validation", lambda groups, path, outcome: _blank(path))
    monkeypatch.setattr(comparison, "plot_training", lambda groups, path: _blank(path))


def _blank(path):
    path.write_bytes(b"")
    return True


def _flat(text):
    return " ".join(text.split())


# Numbers


def test_numbers_of_twotwo_groups(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, report, results = compare_groups(two_groups(tmp_path), tmp_path / "out")
    # last 0.5 and 0.625
    base = cells_of(report, "base", "## Validation")
    assert base[:4] == ["2", "4", "0.125 ± 0.000", "0.562 ± 0.062"]
    # 0.5625 ± 12.706 * 0.0625
    assert base[4] == "-0.232 to 1.357"
    # (0.125 / 2 + 0.25 + 0.5 / 2) / 2 = 0.28125, and 0.3125 with 0.625 at the end
    assert base[5] == "0.297 ± 0.016"
    # 4 minutes; 4 updates of 8 rollouts of 10 tokens
    assert base[6:] == ["0.562 ± 0.062", "4.0", "320", "0.562 ± 0.062"]
    difference = cells_of(report, "faster", "## Differences to base")
    # 0.25 for both seeds; curves: 0.25 more in the middle and at the end, so 0.1875 for both
    assert difference[:5] == ["2", "+0.250", "0.250 to 0.250", "+0.188", "0.188 to 0.188"]
    assert difference[5:7] == ["+0.250", "0.250 to 0.250"]  # at equal tokens
    assert difference[7].startswith("+0.250 ± ")
    assert "faster: higher by 0.250 (95% interval 0.250 to 0.250, 2 seeds)." in _flat(text)

    assert results["baseline"] == "base" and results["outcome"] == "eval_accuracy"
    run = results["groups"]["faster"]["runs"][1]
    assert run["run"] == "faster-1" and run["seed"] == 1
    assert run["curve"][1] == {
        "step": 2, "seconds": 120.0, "tokens": 160.0, "value": 0.5,
        "stderr": pytest.approx(math.sqrt(0.25 / 7)),
    }  # fmt: skip
    assert run["best"] == {"value": 0.875, "step": 4, "model": "faster-1/best"}
    assert run["wall_seconds"] == 240.0 and run["training_end"]["grad_norm"] == pytest.approx(0.4)
    last = results["differences"]["faster"]["last"]
    assert last["by_seed"] == {"0": 0.25, "1": 0.25} and last["interval"] == [0.25, 0.25]
    assert results["groups"]["base"]["settings"] == {"lr": "1e-4"}


def test_runs_are_compared_at_equal_tokens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    groups = two_groups(tmp_path)
    for folder in groups["faster"]:
        path = folder / "metrics.jsonl"
        path.write_text(path.read_text().replace('"length/mean": 10', '"length/mean": 40'))
    _, report, results = compare_groups(groups, tmp_path / "out")
    # 320 tokens are the end of base, and a quarter of the way, between 0.125 and 0.5, of faster.
    assert cells_of(report, "faster", "## Validation")[8:] == ["1,280", "0.312 ± 0.000"]
    assert results["groups"]["base"]["runs"][1]["at_equal_tokens"] == 0.625
    difference = results["differences"]["faster"]["at_equal_tokens"]
    assert difference["by_seed"] == {"0": 0.3125 - 0.5, "1": 0.3125 - 0.625}


def test_difference_over_questions_is_paired(tmp_path):
    _, _, results = compare_groups(two_groups(tmp_path), tmp_path / "out")
    # Of the questions 3 to 7 the share of right answers over two seeds: base 1, 1/2, 0, 0, 0 and
    # variant 1, 1, 1, 1/2, 0. Differences 1/2, 1, 1/2 and 5 zeros: mean 1/4, squares 1.5 - 8 / 16.
    paired = results["differences"]["faster"]["over_questions"]
    assert paired == {
        "difference": pytest.approx(0.25),
        "stderr": pytest.approx(math.sqrt(1.0 / (8 * 7))),
        "num_questions": 8,
    }


def test_other_questions_give_no_difference_over_questions(tmp_path):
    groups = two_groups(tmp_path)
    groups["faster"] = [
        answered_run(tmp_path / f"x{seed}", seed, right, prompt="How much is {} + 1?")
        for seed, right in enumerate(VARIANT)
    ]
    _, report, results = compare_groups(groups, tmp_path / "out")
    assert results["differences"]["faster"]["over_questions"] is None
    assert cells_of(report, "faster", "## Differences to base")[-1] == "-"


def _ends(folder, name, ends):
    return [seed_run(folder / f"{name}-{seed}", seed, [0.2, end]) for seed, end in enumerate(ends)]


def test_no_difference_is_said_to_be_none(tmp_path):
    groups = {
        "base": _ends(tmp_path, "a", [0.5, 0.6, 0.7]),
        "other": _ends(tmp_path, "b", [0.51, 0.6, 0.69]),
    }
    text, report, _ = compare_groups(groups, tmp_path / "out")
    # differences 0.01, 0, -0.01: standard error 0.01 / sqrt(3), times 4.303
    said = (
        "other: no difference seen: +0.000 (95% interval -0.025 to 0.025, 3 seeds); one of less "
        "than about 0.025 would not have been seen."
    )
    assert said in _flat(text) and said in _flat(report)


def test_several_comparisons_are_said_to_be_several(tmp_path):
    groups = {
        "base": _ends(tmp_path, "a", [0.50, 0.60, 0.70]),
        # t = 0.1 / (0.01 / sqrt(3)) = 17, p = 0.003; t = 5.2, p = 0.035
        "clear": _ends(tmp_path, "b", [0.59, 0.70, 0.81]),
        "hardly": _ends(tmp_path, "c", [0.48, 0.57, 0.66]),
        "neither": _ends(tmp_path, "d", [0.45, 0.70, 0.70]),
    }
    text, _, results = compare_groups(groups, tmp_path / "out")
    verdicts = {label: d["verdict"] for label, d in results["differences"].items()}
    assert verdicts["clear"] == "higher by 0.100 (95% interval 0.075 to 0.125, 3 seeds)."
    # Below 0.05, but not below 0.05 / 2.
    assert verdicts["hardly"].startswith("lower by 0.030 (95% interval -0.055 to -0.005, 3 seeds")
    assert verdicts["hardly"].endswith("; not after Holm's correction).")
    assert verdicts["neither"].startswith("no difference seen: ")
    assert "These are 3 comparisons with one baseline." in _flat(text)


def test_baseline_can_be_any_group(tmp_path):
    _, report, results = compare_groups(two_groups(tmp_path), tmp_path / "out", baseline="faster")
    assert results["differences"]["base"]["last"]["mean"] == -0.25
    assert "## Differences to faster" in report
    with pytest.raises(ValueError, match=r"got 'x', but the groups are \['base', 'faster'\]"):
        compare_groups(two_groups(tmp_path / "2"), tmp_path / "out2", baseline="x")
    assert not (tmp_path / "out2").exists()


def test_loss_of_instruction_tuning_is_an_outcome(tmp_path):
    groups = {}
    for name, ends in (("a", (1.0, 1.1)), ("b", (0.9, 1.0))):
        groups[name] = [
            write_metrics(
                tmp_path / f"{name}{seed}",
                [{"step": s, "elapsed_seconds": 1.0, "tuning_step": s, "eval_loss": loss}
                 for s, loss in ((0, 2.0), (5, end - 0.2), (9, end))],
            )
            for seed, end in enumerate(ends)
        ]  # fmt: skip
        for seed, run in enumerate(groups[name]):
            (run / "config.json").write_text(json.dumps({"seed": seed}))
    text, report, results = compare_groups(groups, tmp_path / "out")
    assert "Loss of the last validation" in _flat(text)
    assert results["differences"]["b"]["last"]["mean"] == pytest.approx(-0.1)
    assert cells_of(report, "b", "## Best checkpoints")[:2] == ["0.700", "5"]


# What must be said


def test_one_seed_has_no_interval(tmp_path):
    groups = {"base": _ends(tmp_path, "a", [0.5]), "other": _ends(tmp_path, "b", [0.6])}
    text, report, results = compare_groups(groups, tmp_path / "out")
    assert "other: +0.100 with one seed, so there is no interval: it may be chance." in _flat(text)
    assert cells_of(report, "base", "## Validation")[3:5] == ["0.500", "-"]
    assert results["groups"]["base"]["interval"] is None


def test_seeds_that_are_not_the_same_are_not_paired(tmp_path):
    groups = {
        "base": [seed_run(tmp_path / "a", 0, [0.2, 0.5])],
        "other": [seed_run(tmp_path / "b", 1, [0.2, 0.6])],
    }
    text, _, _ = compare_groups(groups, tmp_path / "out")
    assert "other: no seed is in both, so there is no paired difference." in _flat(text)


def test_a_run_that_ended_early_is_in_no_mean_and_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    groups = {
        "base": _ends(tmp_path, "a", [0.5, 0.6, 0.7]),
        "other": [*_ends(tmp_path, "b", [0.6, 0.7]), seed_run(tmp_path / "short", 2, [0.2])],
    }
    text, report, results = compare_groups(groups, tmp_path / "out")
    said = (
        "short (other): its last validation is at GRPO step 0, others of its group have one at 5: "
        "it is in no mean and no difference."
    )
    assert said in _flat(text) and said in _flat(report)
    assert cells_of(report, "other", "## Validation")[:4] == [
        "2 of 3", "5", "0.200 ± 0.000", "0.650 ± 0.050"
    ]  # fmt: skip
    assert set(results["differences"]["other"]["last"]["by_seed"]) == {"0", "1"}
    assert [run["is_short"] for run in results["groups"]["other"]["runs"]] == [False, False, True]


def test_a_group_that_is_not_finished_is_named(tmp_path):
    run = seed_run(tmp_path / "a", 0, [0.2, 0.5])
    (run / "config.json").write_text('{"seed": 0, "n_grpo_steps": 50}')
    text, _, _ = compare_groups({"base": [run]}, tmp_path / "out")
    assert "it is not finished: its last validation is at GRPO step 5 of 50." in _flat(text)
    assert "There is one group, so there is nothing to compare it with." in _flat(text)


def test_a_run_that_diverged_is_counted_and_named(tmp_path):
    groups = two_groups(tmp_path)
    right = {0: "11111100", 2: "11111110", 4: "00000000"}
    groups["base"].append(answered_run(tmp_path / "lost", 2, right, loss=math.nan))
    text, report, results = compare_groups(groups, tmp_path / "out")
    assert "it diverged: its loss is not finite from update 1 on." in _flat(text)
    assert "it collapsed: its accuracy went from 0.875 at GRPO step 2 to 0.000 at 4." in _flat(text)
    # It ran to its end, so it is in the mean.
    assert cells_of(report, "base", "## Validation")[3] == "0.375 ± 0.191"
    assert "loss" not in results["groups"]["base"]["runs"][2]["training_end"]


def test_validations_that_are_no_numbers_are_left_out(tmp_path):
    lines = [
        {"step": s, "elapsed_seconds": 1.0, "grpo_step": s, "eval_accuracy": value}
        for s, value in ((0, 0.25), (5, 0.5), (10, math.nan))
    ]
    run = write_metrics(tmp_path / "a", lines)
    _, _, results = compare_groups({"base": [run]}, tmp_path / "out")
    assert [p["step"] for p in results["groups"]["base"]["runs"][0]["curve"]] == [0, 5]


def test_runs_without_validation_and_groups_without_runs_are_named(tmp_path):
    blind = write_metrics(tmp_path / "blind", [])
    groups = {"gone": [], "blind": [blind], **two_groups(tmp_path)}
    text, _, results = compare_groups(groups, tmp_path / "out", problems=["Seed 7 crashed."])
    assert "Seed 7 crashed." in text
    assert "blind (blind) has no validation to compare; it is left out" in _flat(text)
    assert "gone has no run to compare; it is left out" in _flat(text)
    # The first group is the baseline, and it is not there.
    assert "The baseline has no run to compare with, so there are no differences." in _flat(text)
    assert results["baseline"] is None and results["differences"] == {}
    with pytest.raises(ValueError, match=r"no validation to compare: .*blind .*eval_every"):
        compare_groups({"blind": [blind]}, tmp_path / "out2")


def test_groups_that_end_at_different_steps_say_so(tmp_path):
    groups = {
        "base": [seed_run(tmp_path / "a", 0, [0.2, 0.5])],
        "long": [seed_run(tmp_path / "b", 0, [0.2, 0.5, 0.6])],
    }
    text, _, _ = compare_groups(groups, tmp_path / "out")
    assert "Not all groups end at the same GRPO step: their last validations are at 5 to 10" in (
        _flat(text)
    )


def test_runs_of_a_group_that_differ_in_more_than_the_seed_are_named(tmp_path):
    runs = [seed_run(tmp_path / str(s), s, [0.2, 0.5], beta=0.1 * s) for s in range(2)]
    text, report, _ = compare_groups({"base": runs}, tmp_path / "out")
    assert "The runs of base differ in more than their seed: beta." in _flat(text)
    assert cells_of(report, "base", "## How it was run") == ["0 / 0.1"]


def test_a_seed_twice_is_an_error(tmp_path):
    runs = [seed_run(tmp_path / name, 0, [0.2, 0.5], beta=len(name)) for name in ("a", "bb")]
    with pytest.raises(ValueError, match="'g' has seed 0 twice, in a and bb; group by beta too"):
        compare_groups({"g": runs}, tmp_path / "out")
    (runs[1] / "recipe.yaml").write_text("beta: 1\n")
    with pytest.raises(ValueError, match="; leave one out"):
        compare_groups({"g": runs}, tmp_path / "out")


def test_runs_of_different_kinds_are_an_error(tmp_path):
    groups = {key: [seed_run(tmp_path / key, 0, [0.2], key)] for key in ("ei_step", "train_step")}
    with pytest.raises(ValueError, match=r"different kinds: .* counts ei_step, .*train_step; "):
        compare_groups(groups, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _diverged(folder, seed, accuracies):
    run = seed_run(folder, seed, accuracies)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    update = {"step": 9, "grpo_step": 9, "elapsed_seconds": 100.0, "loss": math.nan}
    return write_metrics(run, [*lines, update]) if seed >= 0 else run


def test_what_is_left_of_a_variant_that_diverges_is_not_called_better(tmp_path):
    """Three of five seeds end as no numbers; the two that do not are the best of the five."""
    groups = {
        "base": _ends(tmp_path, "a", [0.50, 0.51, 0.52, 0.53, 0.54]),
        "wild": _ends(tmp_path, "b", [0.60, 0.61])
        + [_diverged(tmp_path / f"b-{seed}", seed, [0.2]) for seed in (2, 3, 4)],
    }
    text, _, _ = compare_groups(groups, tmp_path / "out")
    said = (
        "wild: no verdict: not all runs reached the end as numbers (3 of 5 of wild), and those "
        "that did may be the better ones (+0.100 between the others)."
    )
    assert said in _flat(text)
    assert "higher by" not in text


def test_curves_of_other_steps_are_not_compared(tmp_path):
    """The mean of two points is no curve's to be held against that of four."""
    groups = {
        "base": _ends(tmp_path, "a", [0.5, 0.6]),
        "longer": [seed_run(tmp_path / f"b-{s}", s, [0.2, 0.7, 0.7, 0.7]) for s in (0, 1)],
    }
    _, report, _ = compare_groups(groups, tmp_path / "out")
    row = cells_of(report, "longer", "## Differences to base")
    assert row[1] == "+0.150"
    assert row[3:5] == ["-", "-"]
