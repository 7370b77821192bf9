"""Competition mathematics (MATH): rows of `problem`, `solution`, `answer`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

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
