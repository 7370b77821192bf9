"""Competition mathematics (MATH): rows of `problem`, `solution`, `answer`."""

from collections.abc import Iterator
from dataclasses import dataclass

from trl_r1zero.data.bad_rows import usable
from trl_r1zero.data.files import Row
from trl_r1zero.data.tasks.base import Example, RowTask, Solution
from trl_r1zero.rewards.extraction import extract_boxed

METADATA_FIELDS = ("level", "subject", "unique_id")


@dataclass(frozen=True)
class MathTask(RowTask):
    r"""Fields `problem` and `answer`, or `problem` and a `solution` that ends in `\boxed{answer}`.

    Where a row has both, `answer` is the ground truth. `level`, `subject` and `unique_id` are kept
    as metadata where a row has them.
    """

    name = "math"
    default_prompt = "r1_zero"
    expected_source = (
        "a JSON-lines file or folder with the fields problem, solution, answer, or a Hub id such "
        "as HuggingFaceH4/MATH-500:test"
    )

    def example(self, row: Row) -> Example:
        metadata = {name: row.fields[name] for name in METADATA_FIELDS if name in row.fields}
        return Example(row.text("problem"), _answer(row), metadata)

    def solutions(self, rows: Iterator[Row] | None, split: str = "train") -> Iterator[Solution]:
        """Yields the field `solution` of each row; see `Task.solutions`."""
        return usable(_solution, self.rows(None, split) if rows is None else rows)


def _solution(row: Row) -> Solution:
    return Solution(row.text("problem"), row.text("solution"), _answer(row), row.where)


def _answer(row: Row) -> str:
    answer = row.optional_text("answer")
    if answer is not None:
        return answer
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
