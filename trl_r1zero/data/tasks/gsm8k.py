"""Grade-school mathematics (GSM8K): rows of `question`, `answer`, the answer ending in `#### N`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from trl_r1zero.data.jsonl import Row
from trl_r1zero.data.sources import read_source
from trl_r1zero.data.tasks.base import Example, Solution, Task, take

__all__ = ["Gsm8kTask"]

FINAL_NUMBER = re.compile(r"####[ \t]*(-?[0-9][0-9,]*(?:\.[0-9]+)?)\s*\Z")
# What the calculator of the paper was given and gave: "48/2 = <<48/2=24>>24".
CALCULATOR_ANNOTATION = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True)
class Gsm8kTask(Task):
    """The ground truth is the number after `####`, without thousands commas ("1,200" -> "1200")."""

    name: ClassVar[str] = "gsm8k"
    default_prompt: ClassVar[str] = "r1_zero"
    default_source: ClassVar[str] = "openai/gsm8k@main"

    def load(
        self, source: str | None = None, split: str = "train", limit: int | None = None
    ) -> list[Example]:
        """Returns the rows of `source` (None: `openai/gsm8k@main` on the Hub); see `Task.load`."""
        return take(map(_example, read_source(source or self.default_source, split)), limit)

    def solutions(self, rows: Iterator[Row] | None, split: str = "train") -> Iterator[Solution]:
        """Yields the text before `####`, without calculator annotations; see `Task.solutions`."""
        return map(_solution, read_source(self.default_source, split) if rows is None else rows)


def _example(row: Row) -> Example:
    return Example(row.text("question"), _working_and_number(row)[1])


def _solution(row: Row) -> Solution:
    working, number = _working_and_number(row)
    if not working.strip():
        raise row.error(
            "answer",
            "no working before '####'",
            "a worked solution",
            "correct or remove the row",
        )
    working = CALCULATOR_ANNOTATION.sub("", working)
    return Solution(row.text("question"), working, number, row.where)


def _working_and_number(row: Row) -> tuple[str, str]:
    answer = row.text("answer")
    match = FINAL_NUMBER.search(answer)
    if match is None:
        raise row.error(
            "answer",
            f"{answer[-40:]!r} at its end",
            "'#### ' and a number at the end",
            "write the final answer so",
        )
    return answer[: match.start()], match[1].replace(",", "")
