"""Answers to the same validation questions as training goes on, of one run of each group."""

from collections.abc import Sequence

from trl_r1zero.evaluation.pages import Example
from trl_r1zero.runs.logged_run import by_change

from .compared import Group, Validation
from .report import verdict_of_answer

NUM_QUESTIONS = 2
MAX_TIMES = 6


def responses_over_time(groups: Sequence[Group]) -> list[Example]:
    """Of each group's median run two questions, with its answers at up to six validations.

    They are the first ones of `by_change`, from the first to the last of these validations. A run
    without tables of generations has none.
    """
    return [shown for group in groups for shown in _of_group(group)]


def _of_group(group: Group) -> list[Example]:
    run = group.median_run
    existing = [point for point in run.curve if run.generation_file(point.line).is_file()]
    tables = {point.step: run.answers(point.line) for point in _spread(existing)}
    # A different number of questions (in a resumed run) leaves a common beginning.
    together = zip(*tables.values(), strict=False)
    asked = [rows for rows in together if len({row["prompt"] for row in rows}) == 1]
    shown = []
    for number in by_change([(rows[0], rows[-1]) for rows in asked])[:NUM_QUESTIONS]:
        first = asked[number][0]
        texts = {"Prompt": first["prompt"], "Ground truth": str(first["ground_truth"])}
        for step, row in zip(tables, asked[number], strict=True):
            when = f"After {run.kind.step_name} {step} ({verdict_of_answer(row)})"
            texts[when] = row["response"]
        about = [f"run {run.shown}", f"seed {run.seed}", "the group's median run at the end"]
        shown.append(Example(f"{group.label}: question {number}", about, texts))
    return shown


def _spread(points: list[Validation]) -> list[Validation]:
    """At most `MAX_TIMES` of them, the first and the last, and evenly between."""
    if len(points) <= MAX_TIMES:
        return points
    return [points[round(i * (len(points) - 1) / (MAX_TIMES - 1))] for i in range(MAX_TIMES)]
