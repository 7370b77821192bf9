"""What a comparison found, in plain words: the sentences that its numbers allow."""

import math
from collections.abc import Sequence

from .compared import Difference, Group
from .grouping import differing_settings
from .statistics import CONFIDENCE


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
