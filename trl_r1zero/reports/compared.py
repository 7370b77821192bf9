"""Runs and groups of runs, as a comparison sees them: curves, ends, and what must be said of them.

The outcome is the metric of validation by which a run's best checkpoint is picked: the accuracy or,
for instruction tuning, the loss.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from operator import attrgetter
from pathlib import Path

import numpy as np

from trl_r1zero.evaluation.compare import PairedDifference, paired_difference
from trl_r1zero.evaluation.evaluated import QuestionKey
from trl_r1zero.evaluation.metrics import mean
from trl_r1zero.rewards import is_correct
from trl_r1zero.runs.logged_run import Line, LoggedRun, is_finite

from .grouping import differing_settings, format_path
from .statistics import SeedDifference, difference_by_seed, holm, mean_over_steps, t_interval

# An accuracy below this share of the run's best has collapsed, if it is far enough below.
_COLLAPSED_SHARE, _COLLAPSED_BY = 0.5, 0.1


@dataclass(frozen=True)
class Validation:
    """One point of a validation curve: `seconds` of wall-clock from the start of training, `tokens`
    as by `LoggedRun.tokens_at`, the outcome's `value` and standard error over questions (None: not
    logged), and the line of metrics."""

    step: int
    seconds: float
    tokens: float | None
    value: float
    stderr: float | None
    line: Line


class ComparedRun(LoggedRun):
    """One run of a group.

    `shown` is its folder, as a report names it. It `is_short` if its last validation is earlier
    than that of another run of its group; such a run is shown, and is in no mean and no difference.
    `notes` is what must be said of it: that it is short, was not finished, diverged or collapsed.
    `at_equal_tokens` is the outcome where it had spent as many tokens as each of the runs that it
    is compared with; None if that is not known.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.shown = format_path(folder)
        self.is_short = self.has_diverged = False
        self.notes: list[str] = []
        self.at_equal_tokens: float | None = None

    @property
    def seed(self) -> Hashable:
        """The setting `seed`; None if there is none."""
        return self.settings.get("seed")

    @cached_property
    def curve(self) -> list[Validation]:
        """Its validations by ascending step, without those whose outcome is NaN or infinite."""
        key, metric = self.kind.step_key, self.kind.best
        # A resumed run may have a step's validation twice: the last one counts.
        at_step = {
            int(line[key]): line
            for line in self.validations
            if is_finite(line.get(metric)) and key in line
        }
        return [
            Validation(
                step=step,
                seconds=line["elapsed_seconds"],
                tokens=self.tokens_at(line),
                value=line[metric],
                stderr=error if is_finite(error := line.get(f"{metric}_stderr")) else None,
                line=line,
            )
            for step, line in sorted(at_step.items())
        ]

    @property
    def last(self) -> Validation:
        return self.curve[-1]

    @cached_property
    def best(self) -> Validation:
        """The first of the best validations."""
        pick = max if self.kind.higher_is_better else min
        return pick(self.curve, key=lambda point: point.value)

    @cached_property
    def mean_over_steps(self) -> float:
        """See `statistics.mean_over_steps`; the last value where there is only one."""
        area = mean_over_steps([p.step for p in self.curve], [p.value for p in self.curve])
        return self.last.value if math.isnan(area) else area

    def value_at(self, tokens: float) -> float:
        """The outcome where it had spent that many tokens; evenly between two validations."""
        known = [(point.tokens, point.value) for point in self.curve if point.tokens is not None]
        spent, values = zip(*known, strict=True)
        return float(np.interp(tokens, spent, values))

    @property
    def best_folder(self) -> str | None:
        """Where the model of the best validation lies; None if it was not kept."""
        return f"{self.shown}/best" if (self.folder / "best").is_dir() else None

    def training_end(self, metric: str) -> float | None:
        """A training metric's mean over the last tenth of the logged updates, if there is any."""
        last = self.training[-max(1, len(self.training) // 10) :]
        numbers = [value for line in last if is_finite(value := line.get(metric))]
        return mean(numbers) if numbers else None

    @cached_property
    def last_answers(self) -> list[tuple[QuestionKey, bool]]:
        """Question by question, whether its last validation answered right, if that is known."""
        # Not the texts themselves: a report may be of many runs with thousands of questions.
        return [
            ((sha256(f"{row['prompt']}".encode()).hexdigest(), number), is_correct(row))
            for number, row in enumerate(self.answers(self.last.line))
        ]

    def note_what_happened(self, last_step: int) -> None:
        """Fill `notes`. `last_step`: the latest of its group's last validations."""
        name, last, best = self.kind.step_name, self.last, self.best
        self.is_short = last.step < last_step
        if self.is_short:
            self.notes.append(
                f"its last validation is at {name} {last.step}, others of its group have one "
                f"at {last_step}: it is in no mean and no difference"
            )
        elif self.planned_steps and last.step < self.planned_steps:
            self.notes.append(
                f"it is not finished: its last validation is at {name} {last.step} of "
                f"{self.planned_steps}"
            )
        # JSON has None for a loss that is not finite; older files have NaN.
        losses = ((line["step"], line["loss"]) for line in self.training if "loss" in line)
        lost = [at for at, loss in losses if loss is None or not math.isfinite(loss)]
        lost += [line["step"] for line in self.lines if "diverged" in line]
        self.has_diverged = bool(lost)
        if lost:
            self.notes.append(f"it diverged: its loss is not finite from update {lost[0]} on")
        fell_by = best.value - last.value
        is_collapse = last.value < _COLLAPSED_SHARE * best.value and fell_by > _COLLAPSED_BY
        if self.kind.higher_is_better and is_collapse:
            self.notes.append(
                f"it collapsed: its accuracy went from {best.value:.3f} at {name} {best.step} to "
                f"{last.value:.3f} at {last.step}"
            )


@dataclass
class Group:
    """A variant and its runs, the seeds in ascending order; at least one."""

    label: str
    runs: list[ComparedRun]

    @cached_property
    def complete(self) -> list[ComparedRun]:
        """The runs that got as far as the furthest: those that means and differences are of."""
        return [run for run in self.runs if not run.is_short]

    @cached_property
    def median_run(self) -> ComparedRun:
        """The run whose last outcome is the median (the lower one of two), to take examples of."""
        ranked = sorted(self.complete, key=lambda run: run.last.value)
        return ranked[(len(ranked) - 1) // 2]

    @cached_property
    def mean_last(self) -> float:
        """The mean of the last outcomes of the complete runs."""
        return mean([run.last.value for run in self.complete])

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the mean of the last outcomes, see `statistics.t_interval`."""
        return t_interval([run.last.value for run in self.complete])

    @property
    def counts(self) -> str:
        """How many runs the means are of: `3`, or `2 of 3`."""
        number, total = len(self.complete), len(self.runs)
        return f"{number} of {total}" if number < total else str(total)

    @property
    def name(self) -> str:
        """`label (2 of 3 runs)`."""
        return f"{self.label} ({self.counts} run{'s' if len(self.runs) > 1 else ''})"

    @property
    def lost(self) -> str:
        """How many runs did not reach the end or diverged, in words; empty if none did."""
        number = sum(run.is_short or run.has_diverged for run in self.runs)
        return f"{number} of {len(self.runs)} of {self.label}" if number else ""

    def by_seed(self, attribute: str) -> dict[Hashable, float]:
        """Seed -> an attribute such as `last.value`, of the complete runs that have a seed."""
        value_of = attrgetter(attribute)
        return {run.seed: value_of(run) for run in self.complete if run.seed is not None}


def read_groups(groups: Mapping[str, Sequence[Path]]) -> tuple[list[Group], list[str]]:
    """The groups that have a run with a validation, from their folders, and sentences on what was
    left out. Raises as `write_comparison` does."""
    found, left_out = [], []
    for label, folders in groups.items():
        runs = [ComparedRun(Path(folder)) for folder in folders]
        left_out += [
            f"{run.shown} ({label}) has no validation to compare; it is left out"
            for run in runs
            if not run.curve
        ]
        runs = [run for run in runs if run.curve]
        if not runs:
            left_out.append(f"{label} has no run to compare; it is left out")
            continue
        _check_seeds(label, runs)
        for run in runs:
            run.note_what_happened(max(run.last.step for run in runs))
        found.append(Group(label, sorted(runs, key=_seed_rank)))
    if not found:
        reasons = "; ".join(left_out) or "no group is given"
        raise ValueError(
            f"there is no validation to compare: {reasons}; give runs whose eval_every is not null"
        )
    example_of = {run.kind.step_key: run for group in found for run in group.runs}
    if len(example_of) > 1:
        kinds = ", ".join(f"{run.shown} counts {key}" for key, run in example_of.items())
        raise ValueError(f"the runs are of different kinds: {kinds}; compare runs of one kind")
    if (tokens := equal_tokens(found)) is not None:
        for group in found:
            for run in group.complete:
                run.at_equal_tokens = run.value_at(tokens)
    return found, left_out


def equal_tokens(groups: Sequence[Group]) -> float | None:
    """The tokens that each complete run of the groups has spent; None where one does not say."""
    runs = [run for group in groups for run in group.complete]
    spent = [run.last.tokens for run in runs if all(p.tokens is not None for p in run.curve)]
    known = [tokens for tokens in spent if tokens is not None]
    return min(known) if known and len(known) == len(runs) else None


def _seed_rank(run: ComparedRun) -> tuple[float, str]:
    """Numbers ascending, then runs without one."""
    return float(run.seed) if isinstance(run.seed, int | float) else math.inf, run.shown


def _check_seeds(label: str, runs: Sequence[ComparedRun]) -> None:
    run_of: dict[Hashable, ComparedRun] = {}
    for run in runs:
        if run.seed is not None and run.seed in run_of:
            other = run_of[run.seed]
            names = differing_settings([run, other])
            advice = f"group by {', '.join(names)} too" if names else "leave one out"
            raise ValueError(
                f"the group {label!r} has seed {run.seed} twice, in {other.shown} and {run.shown}; "
                f"{advice}"
            )
        run_of[run.seed] = run


# Differences


@dataclass
class Difference:
    """A variant less the baseline."""

    label: str
    last: SeedDifference  # of the last validations, seed by seed: the primary outcome
    # Of the means of the validation curves over steps, which are less noisy. Without seeds where
    # the two were validated at different steps: such means say different things.
    curve: SeedDifference
    # Of the outcomes at equal tokens; without seeds where these are not known.
    at_equal_tokens: SeedDifference
    # Of the last validations over questions, for these very runs. None where the generations are
    # not there, or not of the same questions.
    questions: PairedDifference | None
    # In words, of which group how many runs did not reach the end, or diverged: they may be the
    # worse ones, so that a difference between the others is none between the groups.
    lost: str
    outlasts_holm: bool = False  # whether `last` is significant among all comparisons, see `holm`


def differences_to(baseline: Group, groups: Sequence[Group]) -> list[Difference]:
    """The differences of all other groups to the baseline."""
    differences = []
    for group in groups:
        if group is baseline:
            continue
        runs = [*group.complete, *baseline.complete]
        alike = len({tuple(point.step for point in run.curve) for run in runs}) == 1
        last = difference_by_seed(group.by_seed("last.value"), baseline.by_seed("last.value"))
        curves = group.by_seed("mean_over_steps") if alike else {}
        curve = difference_by_seed(curves, baseline.by_seed("mean_over_steps"))
        known = all(run.at_equal_tokens is not None for run in runs)
        at_tokens = difference_by_seed(
            group.by_seed("at_equal_tokens") if known else {}, baseline.by_seed("at_equal_tokens")
        )
        questions = _over_questions(group, baseline, set(last.differences))
        lost = ", ".join(side.lost for side in (baseline, group) if side.lost)
        differences.append(Difference(group.label, last, curve, at_tokens, questions, lost))
    significant = holm([difference.last.p_value for difference in differences])
    for difference, outlasts in zip(differences, significant, strict=True):
        difference.outlasts_holm = outlasts
    return differences


def _over_questions(group: Group, baseline: Group, seeds: set[Hashable]) -> PairedDifference | None:
    """Each question's share of right answers over the seeds, less the baseline's."""
    sides = [[r.last_answers for r in g.complete if r.seed in seeds] for g in (group, baseline)]
    asked = [[question for question, _ in answers] for side in sides for answers in side]
    if not asked or not asked[0] or any(questions != asked[0] for questions in asked):
        return None
    shares = [
        [mean([float(right) for _, right in answers]) for answers in zip(*side, strict=True)]
        for side in sides
    ]
    return paired_difference(*(dict(zip(asked[0], one, strict=True)) for one in shares))
