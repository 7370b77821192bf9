"""Answers to the same validation questions as training goes on, of one run of each group."""

from collections.abc import Sequence

from trl_r1zero.data.files import read_jsonl
from trl_r1zero.evaluation.pages import Shown
from trl_r1zero.rewards import is_correct
from trl_r1zero.runs.logged_run import Row, telling

from .compared import ComparedRun, Group

__all__ = ["responses_over_time"]

NUM_QUESTIONS = 2
MAX_TIMES = 6


def responses_over_time(groups: Sequence[Group]) -> list[Shown]:
    """Of each group's median run two telling questions, with its answers at up to six validations.

    Telling are first a question that became right and one that stayed wrong, from the first to the
    last of these validations. A run without tables of generations has none.
    """
    return [shown for group in groups for shown in _of_run(group.label, group.median_run)]


def _of_run(label: str, run: ComparedRun) -> list[Shown]:
    tables: dict[int, list[Row]] = {}
    if run.run.kind.samples:
        files = {point.step: run.run.generation_file(point.line) for point in run.curve}
        existing = [step for step, file in files.items() if file.is_file()]
        for step in _spread(existing, MAX_TIMES):
            tables[step] = [row.fields for row in read_jsonl(files[step])]
    if not tables:
        return []
    steps = list(tables)
    # A different number of questions (in a resumed run) leaves a common beginning.
    asked = [
        rows
        for rows in zip(*tables.values(), strict=False)
        if len({r["prompt"] for r in rows}) == 1
    ]
    shown = []
    for number in telling([(rows[0], rows[-1]) for rows in asked])[:NUM_QUESTIONS]:
        answers = dict(zip(steps, asked[number], strict=True))
        first = asked[number][0]
        texts = {"Prompt": first["prompt"], "Ground truth": str(first["ground_truth"])}
        for step, row in answers.items():
            cut = ", truncated" if row["truncated"] else ""
            facts = f"{'right' if is_correct(row) else 'wrong'}, {row['length']} tokens{cut}"
            texts[f"After {run.run.step_name} {step} ({facts})"] = row["response"]
        about = [f"run {run.shown}", f"seed {run.seed}", "the group's median run at the end"]
        shown.append(Shown(f"{label}: question {number}", about, texts))
    return shown


def _spread(steps: Sequence[int], number: int) -> list[int]:
    """At most so many of them, the first and the last, and evenly between."""
    if len(steps) <= number:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (number - 1))] for i in range(number)]
