"""Grade-school mathematics (GSM8K): rows of `question`, `answer`, the answer ending in `#### N`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from trl_r1zero.data.jsonl import Row
from trl_r1zero.data.sources import read_source
from trl_r1zero.data.tasks.base import (
    MATH_REWARDS,
    Example,
    RewardFn,
    Solution,
    Task,
    take,
)
from trl_r1zero.rewards import gsm8k_reward_fn

__all__ = ["Gsm8kTask"]

FINAL_NUMBER = re.compile(r"####[ \t]*(-?[0-9][0-9,]*(?:\.[0-9]+)?)\s*\Z")
# What the calculator of the paper was given and gave: "48/2 = <<48/2=24>>24".
CALCULATOR_ANNOTATION = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True)
class Gsm8kTask(Task):
    """The ground truth is the number after `####`, without thousands commas ("1,200" -> "1200").

    With a prompt of free text the last number of a response is its answer.

    Attributes:
        answer_line: a line "Answer:" follows each question, as the handout has it in its evaluation
            with a prompt of free text.
    """

    answer_line: bool = False

    name: ClassVar[str] = "gsm8k"
    default_prompt: ClassVar[str] = "r1_zero"
    eval_split: ClassVar[str] = "test"  # there is no validation split
    rewards: ClassVar[Mapping[str, RewardFn | None]] = {**MATH_REWARDS, "text": gsm8k_reward_fn}
    default_source: ClassVar[str] = "openai/gsm8k@main"

    def load(
        self, source: str | None = None, split: str = "train", limit: int | None = None
    ) -> list[Example]:
        """Returns the rows of `source` (None: `openai/gsm8k@main` on the Hub); see `Task.load`."""
        rows = read_source(source or self.default_source, split)
        return take(map(self._example, rows), limit)

    def solutions(self, rows: Iterator[Row] | None, split: str = "train") -> Iterator[Solution]:
        """Yields the text before `####`, without calculator annotations; see `Task.solutions`."""
        rows = read_source(self.default_source, split) if rows is None else rows
        return map(self._solution, rows)

    def _example(self, row: Row) -> Example:
        return Example(self._question(row), _working_and_number(row)[1])

    def _solution(self, row: Row) -> Solution:
        working, number = _working_and_number(row)
        if not working.strip():
            raise row.error(
                "answer",
                "no working before '####'",
                "a worked solution",
                "correct or remove the row",
            )
        working = CALCULATOR_ANNOTATION.sub("", working)
        return Solution(self._question(row), working, number, row.where)

    def _question(self, row: Row) -> str:
        return row.text("question") + ("\nAnswer:" if self.answer_line else "")


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
