"""Competition mathematics (MATH): rows of `problem`, `solution`, `answer`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from trl_r1zero.data.jsonl import Row
from trl_r1zero.data.sources import read_source
from trl_r1zero.data.tasks.base import Example, Solution, Task, take
from trl_r1zero.rewards.extraction import extract_boxed

__all__ = ["MathTask"]

METADATA_FIELDS = ("level", "subject", "unique_id")
NO_SOURCE = (
    "task 'math': got no source, expected a JSON-lines file or folder with the fields "
    "problem, solution, answer, or a Hub id such as HuggingFaceH4/MATH-500:test"
)


@dataclass(frozen=True)
class MathTask(Task):
    r"""Fields `problem` and `answer`, or `problem` and a `solution` that ends in `\boxed{answer}`.

    Where a row has both, `answer` is the ground truth. `level`, `subject` and `unique_id` are kept
    as metadata where a row has them.
    """

    name: ClassVar[str] = "math"
    default_prompt: ClassVar[str] = "r1_zero"

    def load(
        self, source: str | None = None, split: str = "train", limit: int | None = None
    ) -> list[Example]:
        """Returns the rows of `source`, which must be given; see `Task.load`."""
        if source is None:
            raise ValueError(NO_SOURCE)
        return take(map(_example, read_source(source, split)), limit)

    def solutions(self, rows: Iterator[Row] | None, split: str = "train") -> Iterator[Solution]:
        """Yields the field `solution` of each row; see `Task.solutions`."""
        if rows is None:
            raise ValueError(NO_SOURCE)
        return map(_solution, rows)


def _example(row: Row) -> Example:
    metadata = {name: row.fields[name] for name in METADATA_FIELDS if name in row.fields}
    return Example(row.text("problem"), _answer(row), metadata)


def _solution(row: Row) -> Solution:
    return Solution(row.text("problem"), row.text("solution"), _answer(row), row.where)


def _answer(row: Row) -> str:
    answer = row.optional_text("answer")
    return _boxed_answer(row) if answer is None else answer


def _boxed_answer(row: Row) -> str:
    if row.optional_text("solution") is None:
        raise row.error(
            "answer", "neither answer nor solution", "one of them", "add the field answer"
        )
    boxed = extract_boxed(row.text("solution"))
    if boxed is None or not boxed.strip():
        raise row.error(
            "solution",
            r"a text without a complete \boxed{...}",
            r"one that ends in \boxed{answer}, as the row has no answer",
            "add the field answer",
        )
    return boxed
