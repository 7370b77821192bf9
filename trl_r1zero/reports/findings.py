"""What a comparison found, in plain words: numbers, and the sentences that they allow."""

import math
from collections.abc import Sequence

from .compared import Difference, Group
from .statistics import CONFIDENCE

__all__ = ["about_comparisons", "about_ends", "interval_text", "verdict"]

_SHARE = "{:.3f}".format
_SIGNED = "{:+.3f}".format


def interval_text(interval: tuple[float, float]) -> str:
    """`-0.030 to 0.040`; `-` where there is none."""
    low, high = interval
    return "-" if math.isnan(low) else f"{_SHARE(low)} to {_SHARE(high)}"


def verdict(difference: Difference, num_comparisons: int = 1) -> str:
    """One sentence on the difference of the last validations.

    A difference is called seen if the interval over the seeds does not hold 0, and no run was lost
    on the way, which would leave the better ones. Of several comparisons it is said which of them
    Holm's correction would not leave.
    """
    last = difference.last
    if difference.lost:
        told = f"{_SIGNED(last.mean)} between the others" if last.num_seeds else "none is left"
        return (
            f"no verdict: not all runs reached the end as numbers ({difference.lost}), and those "
            f"that did may be the better ones ({told})."
        )
    if last.num_seeds == 0:
        return "no seed is in both, so there is no paired difference."
    if last.num_seeds == 1:
        return f"{_SIGNED(last.mean)} with one seed, so there is no interval: it may be chance."
    how_sure = f"{CONFIDENCE:.0%} interval {interval_text(last.interval)}, {last.num_seeds} seeds"
    if not last.is_seen:
        return (
            f"no difference seen: {_SIGNED(last.mean)} ({how_sure}); one of less than about "
            f"{_SHARE(last.half_width)} would not have been seen."
        )
    if num_comparisons > 1 and not difference.outlasts_holm:
        how_sure += "; not after Holm's correction"
    direction = "higher" if last.mean > 0 else "lower"
    return f"{direction} by {_SHARE(abs(last.mean))} ({how_sure})."


def about_comparisons(differences: Sequence[Difference]) -> list[str]:
    """What to keep in mind where several comparisons have an interval."""
    number = sum(difference.last.num_seeds > 1 for difference in differences)
    if number < 2:
        return []
    return [
        f"These are {number} comparisons with one baseline. Their intervals are not corrected for "
        f"that: where nothing differs, each still has a chance of {1 - CONFIDENCE:.0%} to leave "
        "out 0. Holm's correction keeps the chance of any such error among all of them at "
        f"{1 - CONFIDENCE:.0%}; a difference that it would not call one is marked."
    ]


def about_ends(groups: Sequence[Group]) -> list[str]:
    """Whether the groups end at different steps, for then they differ by that too."""
    ends = [group.complete[0].last.step for group in groups]
    if len(set(ends)) == 1:
        return []
    return [
        f"Not all groups end at the same {groups[0].runs[0].run.step_name}: their last validations "
        f"are at {min(ends)} to {max(ends)}, and are compared as they are."
    ]
