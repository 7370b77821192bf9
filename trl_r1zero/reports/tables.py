"""The tables of a comparison of groups of runs: one row a group, a variant or a run."""

import math
from collections.abc import Sequence

from trl_r1zero.evaluation.metrics import mean, standard_error
from trl_r1zero.evaluation.pages import Table
from trl_r1zero.runs.metrics import GROUP_TRAINING

from .compared import ComparedRun, Difference, Group, Validation, equal_tokens
from .grouping import differing_settings, format_setting
from .statistics import CONFIDENCE


def main_table(groups: Sequence[Group]) -> Table:
    header = [
        "group", "runs", groups[0].runs[0].kind.step_name, "first", "last", "95% interval",
        "mean of curve", "best", "minutes", "tokens",
    ]  # fmt: skip
    spent = equal_tokens(groups)
    if spent is not None:
        header.append(f"at {spent:,.0f} tokens")
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
                *([_mean_cell([run.value_at(spent) for run in runs])] if spent is not None else []),
            ]
        )
    return Table(header, rows)


def difference_table(differences: Sequence[Difference]) -> Table:
    header = ["variant", "seeds", "last", "95% interval", "mean of curve", "95% interval",
              "at equal tokens", "95% interval", "same runs, over questions"]  # fmt: skip
    rows = []
    for d in differences:
        cells = [d.label, str(d.last.num_seeds)]
        for side in (d.last, d.curve, d.at_equal_tokens):
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
        [label, _with_error(r.best), str(r.best.step), _seed(r), r.best_folder or "not kept"]
        for label, r in bests
    ]
    outcome = kind.best.removeprefix("eval_")
    header = ["group", f"best {outcome}", kind.step_name, "seed", "model"]
    return Table(header, rows, numeric=False)


def runs_table(groups: Sequence[Group]) -> Table:
    step_name = groups[0].runs[0].kind.step_name
    header = ["group", "seed", "run", step_name, "last", "best", "minutes", "what to know"]
    rows = []
    for label, run in ((group.label, run) for group in groups for run in group.runs):
        best = f"{run.best.value:.3f} ({run.best.step})"
        end = [str(run.last.step), _with_error(run.last), best, _minutes([run])]
        rows.append([label, _seed(run), run.shown, *end, "; ".join(run.notes)])
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


# What was found, in sentences


def interval_text(interval: tuple[float, float]) -> str:
    """`-0.030 to 0.040`; `-` where there is none."""
    low, high = interval
    return "-" if math.isnan(low) else f"{low:.3f} to {high:.3f}"


def verdict(difference: Difference, num_comparisons: int = 1) -> str:
    """One sentence on the difference of the last validations.

    A difference is called seen if the interval over the seeds does not hold 0, and no run was lost
    on the way, which would leave the better ones. Of several comparisons it is said which of them
    Holm's correction would not leave.
    """
    last = difference.last
    if difference.lost:
        left = f"{last.mean:+.3f} between the others" if last.num_seeds else "none is left"
        return (
            f"no verdict: not all runs reached the end as numbers ({difference.lost}), and those "
            f"that did may be the better ones ({left})."
        )
    if last.num_seeds == 0:
        return "no seed is in both, so there is no paired difference."
    if last.num_seeds == 1:
        return f"{last.mean:+.3f} with one seed, so there is no interval: it may be chance."
    how_sure = f"{CONFIDENCE:.0%} interval {interval_text(last.interval)}, {last.num_seeds} seeds"
    if not last.is_seen:
        return (
            f"no difference seen: {last.mean:+.3f} ({how_sure}); one of less than about "
            f"{last.half_width:.3f} would not have been seen."
        )
    if num_comparisons > 1 and not difference.outlasts_holm:
        how_sure += "; not after Holm's correction"
    return f"{'higher' if last.mean > 0 else 'lower'} by {abs(last.mean):.3f} ({how_sure})."


def findings(
    groups: Sequence[Group], baseline: Group | None, differences: Sequence[Difference], outcome: str
) -> list[str]:
    """The answer, in sentences."""
    if baseline is None:
        return ["The baseline has no run to compare with, so there are no differences."]
    if not differences:
        return ["There is one group, so there is nothing to compare it with."]
    found = [
        f"{outcome.capitalize()} of the last validation, compared with {baseline.label} seed by "
        "seed:",
        *(f"{d.label}: {verdict(d, len(differences))}" for d in differences),
    ]
    number = sum(difference.last.num_seeds > 1 for difference in differences)
    if number > 1:
        found.append(
            f"These are {number} comparisons with one baseline. Their intervals are not corrected "
            "for that: where nothing differs, each still has a chance of "
            f"{1 - CONFIDENCE:.0%} to leave out 0. Holm's correction keeps the chance of any such "
            f"error among all of them at {1 - CONFIDENCE:.0%}; a difference that it would not "
            "call one is marked."
        )
    ends = [group.complete[0].last.step for group in groups]
    if len(set(ends)) > 1:
        found.append(
            f"Not all groups end at the same {groups[0].runs[0].kind.step_name}: their last "
            f"validations are at {min(ends)} to {max(ends)}, and are compared as they are."
        )
    return found


def problems_of_runs(groups: Sequence[Group]) -> list[str]:
    """What must be said of single runs, and of groups whose runs differ in more than their seed."""
    problems = [
        f"{run.shown} ({group.label}): {note}."
        for group in groups
        for run in group.runs
        for note in run.notes
    ]
    for group in groups:
        if names := differing_settings(group.runs):
            problems.append(
                f"The runs of {group.label} differ in more than their seed: {', '.join(names)}."
            )
    return problems
