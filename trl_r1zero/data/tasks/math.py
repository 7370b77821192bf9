"""Competition mathematics (MATH): rows of `problem`, `solution`, `answer`."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from trl_r1zero.data.bad_rows import usable
from trl_r1zero.data.files import Row, describe
from trl_r1zero.data.tasks.base import Example, RowTask, Solution
from trl_r1zero.rewards.extraction import extract_boxed


@dataclass(frozen=True)
class MathTask(RowTask):
    r"""Fields `problem` and `answer`, or `problem` and a `solution` that ends in `\boxed{answer}`.

    Where a row has both, `answer` is the ground truth: a text, or a list of texts of which any is
    right. The `metadata_fields` are kept as metadata where a row has them.
    """

    name = "math"
    metadata_fields: ClassVar[tuple[str, ...]] = ("level", "subject", "unique_id")
    default_prompt = "r1_zero"
    expected_source = (
        "a JSON-lines file or folder with the fields problem, solution, answer, or a Hub id such "
        "as HuggingFaceH4/MATH-500:test"
    )

    def example(self, row: Row) -> Example:
        fields = row.fields
        metadata = {key: fields[key] for key in self.metadata_fields if fields.get(key) is not None}
        return Example(row.text("problem"), _answer(row), metadata)

    def solutions(self, rows: Iterator[Row] | None, split: str = "train") -> Iterator[Solution]:
        """Yields the field `solution` of each row; see `Task.solutions`."""
        return usable(_solution, self.rows(None, split) if rows is None else rows)


def _solution(row: Row) -> Solution:
    return Solution(row.text("problem"), row.text("solution"), _answer(row), row.where)


def _answer(row: Row) -> str | list[str]:
    given = row.fields.get("answer")
    if isinstance(given, list):
        if not given or not all(isinstance(one, str) and one.strip() for one in given):
            expected = "a list of non-empty strings, any of which is right"
            raise row.error("answer", describe(given), expected)
        answers = list(dict.fromkeys(one.strip() for one in given))
        return answers[0] if len(answers) == 1 else answers
    if given is not None:
        return row.answer("answer")
    if row.optional_text("solution") is None:
        do = "add the field answer"
        raise row.error("answer", "neither answer nor solution", "one of them", do)
    boxed = extract_boxed(row.text("solution"))
    if boxed is None or not boxed.strip():
        raise row.error(
            "solution",
            r"a text without a complete \boxed{...}",
            r"one that ends in \boxed{answer}, as the row has no answer",
            "add the field answer",
        )
    return boxed


# The held-out sets that papers report beside MATH

QUESTIONS = ("problem", "question")
ANSWERS = ("answer", "final_answer", "expected_answer")


@dataclass(frozen=True)
class CompetitionTask(MathTask):
    r"""Rows of a question and its right answers, with the columns of any of the published copies.

    Upper and lower case are the same in names of columns. The question is `problem` or `question`,
    behind `context` where there is one. The answer is the first of `answer`, `final_answer`,
    `expected_answer`, else the box of `solution`: a text, a number, or a list of them. Of a list
    any is right, except where `is_multiple_answer` is true: there all are asked for at once.
    OlympiadBench's `subfield` is the subject. A folder as source has the file `NAME.jsonl`, NAME
    being the task's.
    """

    eval_split = "test"
    metadata_fields: ClassVar[tuple[str, ...]] = (
        *MathTask.metadata_fields,
        *("id", "year", "url", "unit", "answer_type"),
    )

    def rows(self, source: str | None, split: str) -> Iterator[Row]:
        """Returns the rows with the columns of `MathTask`."""
        file = Path(source or "").expanduser() / f"{self.name}.jsonl"
        return map(
            _as_math, super().rows(str(file) if source and file.is_file() else source, split)
        )


@dataclass(frozen=True)
class Math500Task(CompetitionTask):
    """MATH-500 (Lightman et al. 2023, arXiv:2305.20050): 500 of MATH's test problems."""

    name = "math500"
    default_source = "HuggingFaceH4/MATH-500"


@dataclass(frozen=True)
class AimeTask(CompetitionTask):
    """AIME: 30 problems of 2024, whose answers are whole numbers of up to three digits."""

    name = "aime"
    default_source = "HuggingFaceH4/aime_2024:train"


@dataclass(frozen=True)
class AmcTask(CompetitionTask):
    """AMC 12: 83 problems of 2022 and 2023 with a number to find. `math-ai/amc23:test` has the 40
    of 2023 that papers call AMC23."""

    name = "amc"
    default_source = "AI-MO/aimo-validation-amc:train"


@dataclass(frozen=True)
class MinervaTask(CompetitionTask):
    """Minerva's OCWCourses (Lewkowycz et al. 2022, arXiv:2206.14858): 272 problems of science."""

    name = "minerva"
    default_source = "math-ai/minervamath"


@dataclass(frozen=True)
class OlympiadBenchTask(CompetitionTask):
    """OlympiadBench (He et al. 2024, arXiv:2402.14008): 674 problems of mathematics, in English and
    without pictures."""

    name = "olympiad_bench"
    default_source = "Hothan/OlympiadBench@OE_TO_maths_en_COMP:train"


def _as_math(row: Row) -> Row:
    """The row with `problem`, `answer` (texts), `solution`, `subject`, and its other columns."""
    fields = {name.lower(): value for name, value in row.fields.items()}
    question = next((name for name in QUESTIONS if isinstance(fields.get(name), str)), "problem")
    if question in fields:
        fields["problem"] = fields[question]
        context = fields.get("context")
        if isinstance(context, str) and context.strip():
            fields["problem"] = f"{context.strip()}\n{Row(row.where, fields).text('problem')}"
    answer = next((name for name in ANSWERS if fields.get(name) is not None), None)
    if answer is not None:
        given = fields[answer]
        texts = [_text(row, answer, one) for one in (given if isinstance(given, list) else [given])]
        all_asked_for = len(texts) > 1 and fields.get("is_multiple_answer") is True
        fields["answer"] = ", ".join(texts) if all_asked_for else texts
    if "subfield" in fields:
        fields["subject"] = fields["subfield"]
    return Row(row.where, fields)


def _text(row: Row, field: str, answer: Any) -> str:
    """An answer as text: some copies have numbers, and 142.0 for 142."""
    if isinstance(answer, str) and answer.strip():
        return answer.strip()
    if isinstance(answer, int | float) and not isinstance(answer, bool) and math.isfinite(answer):
        return str(int(answer)) if answer == int(answer) else str(answer)
    raise row.error(field, describe(answer), "a text, a number, or a list of them, none empty")
