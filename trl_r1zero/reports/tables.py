"""The tables of a comparison of groups of runs: one row a group, a variant or a run."""

import math
from collections.abc import Sequence

from trl_r1zero.evaluation.metrics import mean, standard_error
from trl_r1zero.evaluation.pages import Table
from trl_r1zero.runs.metrics import GROUP_TRAINING

from .compared import ComparedRun, Difference, Group, Validation
from .findings import interval_text
from .grouping import differing_settings, format_setting


def main_table(groups: Sequence[Group]) -> Table:
    header = [
        "group", "runs", groups[0].runs[0].kind.step_name, "first", "last", "95% interval",
        "mean of curve", "best", "minutes", "tokens",
    ]  # fmt: skip
    rows = []
    for group in groups:
        runs = group.complete
        tokens = [run.last.tokens for run in runs if run.last.tokens is not None]
        rows.append(
            [
                group.label,
                group.counts,
                str(runs[0].last.step),
                _mean_cell([run.curve[0].value for run in runs]),
                _mean_cell([run.last.value for run in runs]),
                interval_text(group.interval),
                _mean_cell([run.mean_over_steps for run in runs]),
                _mean_cell([run.best.value for run in runs]),
                _minutes(runs),
                f"{mean(tokens):,.0f}" if len(tokens) == len(runs) else "-",
            ]
        )
    return Table(header, rows)


def difference_table(differences: Sequence[Difference]) -> Table:
    header = ["variant", "seeds", "last", "95% interval", "mean of curve", "95% interval",
              "same runs, over questions"]  # fmt: skip
    rows = []
    for d in differences:
        cells = [d.label, str(d.last.num_seeds)]
        for side in (d.last, d.curve):
            cells += ["-" if math.isnan(side.mean) else f"{side.mean:+.3f}"]
            cells += [interval_text(side.interval)]
        q = d.questions
        over = q and f"{q.difference:+.3f} ± {q.stderr:.3f} ({q.num_common:,})"
        rows.append([*cells, over or "-"])
    return Table(header, rows)


def training_table(groups: Sequence[Group]) -> Table:
    """Means over the last tenth of the updates: one column a metric."""
    logged = {
        metric: [
            [end for run in group.complete if (end := run.training_end(metric)) is not None]
            for group in groups
        ]
        for metric in GROUP_TRAINING
    }
    metrics = [metric for metric, of_groups in logged.items() if any(of_groups)]
    rows = [
        [group.label, *(_mean_cell(logged[metric][number], ".3g") for metric in metrics)]
        for number, group in enumerate(groups)
    ]
    return Table(["group", *(GROUP_TRAINING[metric].lower() for metric in metrics)], rows)


def best_table(groups: Sequence[Group]) -> Table:
    """The best checkpoint of each group."""
    kind = groups[0].runs[0].kind
    pick = max if kind.higher_is_better else min
    bests = [(group.label, pick(group.runs, key=lambda run: run.best.value)) for group in groups]
    rows = [
        [
            label,
            _with_error(run.best),
            str(run.best.step),
            _seed(run),
            run.best_folder or "not kept",
        ]
        for label, run in bests
    ]
    outcome = kind.best.removeprefix("eval_")
    header = ["group", f"best {outcome}", kind.step_name, "seed", "model"]
    return Table(header, rows, numeric=False)


def runs_table(groups: Sequence[Group]) -> Table:
    step_name = groups[0].runs[0].kind.step_name
    header = ["group", "seed", "run", step_name, "last", "best", "minutes", "what to know"]
    rows = [
        [
            group.label,
            _seed(run),
            run.shown,
            str(run.last.step),
            _with_error(run.last),
            f"{run.best.value:.3f} ({run.best.step})",
            _minutes([run]),
            "; ".join(run.notes),
        ]
        for group in groups
        for run in group.runs
    ]
    return Table(header, rows, numeric=False)


def settings_table(groups: Sequence[Group]) -> Table:
    """The settings that differ between groups; those that differ within one are both shown."""
    settings = {group.label: differing_values(group, groups, " / ") for group in groups}
    names = list(settings[groups[0].label])
    rows = [[label, *values.values()] for label, values in settings.items()]
    return Table(["group", *names], rows if names else [], numeric=False)


def differing_values(group: Group, groups: Sequence[Group], separator: str) -> dict[str, str]:
    """The values in a group of the settings that differ between any runs."""
    names = differing_settings([run for one in groups for run in one.runs])
    return {
        name: separator.join(
            dict.fromkeys(format_setting(name, run.settings.get(name)) for run in group.runs)
        )
        for name in names
    }


def _mean_cell(values: Sequence[float], form: str = ".3f") -> str:
    if not values:
        return "-"
    error = standard_error(values)
    return f"{mean(values):{form}}" + ("" if math.isnan(error) else f" ± {error:{form}}")


def _with_error(point: Validation) -> str:
    return f"{point.value:.3f}" + ("" if point.stderr is None else f" ± {point.stderr:.3f}")


def _seed(run: ComparedRun) -> str:
    return "-" if run.seed is None else str(run.seed)


def _minutes(runs: Sequence[ComparedRun]) -> str:
    return f"{mean([run.wall_time for run in runs]) / 60:.1f}"
