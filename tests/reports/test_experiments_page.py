"""docs/experiments.md: its tables and the findings beside it follow from the runs' numbers."""

import gzip
import json

import pytest
from tiny_models import REPOSITORY

from trl_r1zero.evaluation import mean, standard_error
from trl_r1zero.evaluation.markdown import table
from trl_r1zero.reports.compared import Difference
from trl_r1zero.reports.statistics import difference_by_seed, holm, mean_over_steps, t_interval
from trl_r1zero.reports.tables import interval_text, verdict

PAGE = REPOSITORY / "docs" / "experiments.md"
FOLDER = REPOSITORY / "docs" / "experiments"
FILES = sorted(FOLDER.rglob("*.json.gz"))


def _results(path):
    return json.loads(gzip.decompress(path.read_bytes()))


def _by_seed(group):
    assert not any(run["is_short"] for run in group["runs"])
    return {str(run["seed"]): run["curve"][-1]["value"] for run in group["runs"]}


def _differences(results):
    """Label -> the difference of the last validations, from the runs alone."""
    base = _by_seed(results["groups"][results["baseline"]])
    found = {
        label: difference_by_seed(_by_seed(group), base)
        for label, group in results["groups"].items()
        if label != results["baseline"]
    }
    outlasting = holm([difference.p_value for difference in found.values()])
    return {
        label: Difference(label, difference, difference, difference, None, "", outlasts)
        for (label, difference), outlasts in zip(found.items(), outlasting, strict=True)
    }


def _mean(values):
    return f"{mean(values):.3f} ± {standard_error(values):.3f}"


def page_table(results):
    """The table of an experiment, as the page has it."""
    differences = _differences(results)
    rows = []
    for label, group in results["groups"].items():
        ends = [label, _mean([run["last"] for run in group["runs"]])]
        ends += [_mean([run["mean_of_curve"] for run in group["runs"]])]
        if label not in differences:
            rows.append([*ends, "", "the baseline"])
            continue
        last = differences[label].last
        how = ("higher" if last.mean > 0 else "lower") if last.is_seen else "no difference seen"
        if last.is_seen and len(differences) > 1 and not differences[label].outlasts_holm:
            how += ", not after Holm's correction"
        rows.append([*ends, f"{last.mean:+.3f} ({interval_text(last.interval)})", how])
    return table(["variant", "last", "mean of curve", "last, less the baseline", ""], rows)


def _name(path):
    """Of an experiment, such as `edition_2026/variants`."""
    return path.relative_to(FOLDER).as_posix().removesuffix(".json.gz")


def test_experiments_have_a_table_and_a_figure():
    recipes = REPOSITORY / "recipes" / "experiments"
    all_of_them, drawn = (
        {
            path.relative_to(folder).as_posix().removesuffix(suffix)
            for path in folder.rglob(f"*{suffix}")
        }
        for folder, suffix in ((recipes, ".yaml"), (FOLDER, ".png"))
    )
    measured = set(map(_name, FILES))
    assert drawn == measured <= all_of_them
    # Of the 2026 edition not all are measured yet.
    assert all(name.startswith("edition_2026/") for name in all_of_them - measured)


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_the_page_has_what_the_runs_say(path):
    text = PAGE.read_text(encoding="utf-8")
    name = _name(path)
    expected = "\n".join(page_table(_results(path)))
    assert expected in text, f"the table of {name} should be:\n{expected}"
    assert f"(experiments/{name}.json.gz)" in text and f"(experiments/{name}.png)" in text


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_the_findings_follow_from_the_runs(path):
    results = _results(path)
    for group in results["groups"].values():
        lasts = list(_by_seed(group).values())
        assert lasts == [run["last"] for run in group["runs"]]
        assert group["mean_last"] == pytest.approx(mean(lasts), abs=1e-9)
        assert group["interval"] == pytest.approx(list(t_interval(lasts)), abs=1e-9)
        for run in group["runs"]:
            curve = [[point[name] for point in run["curve"]] for name in ("step", "value")]
            assert run["mean_of_curve"] == pytest.approx(mean_over_steps(*curve), abs=1e-9)
            assert run["best"]["value"] == max(curve[1])
    differences = _differences(results)
    assert list(differences) == list(results["differences"])
    for label, difference in differences.items():
        written = results["differences"][label]
        for name, value in difference.last.as_json().items():
            assert written["last"][name] == pytest.approx(value, abs=1e-9)
        assert written["outlasts_holm"] == difference.outlasts_holm
        assert written["verdict"] == verdict(difference, len(differences))
        assert f"{label}: {written['verdict']}" in results["findings"]
