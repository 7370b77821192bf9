"""Grade-school mathematics (GSM8K): rows of `question`, `answer`, the answer ending in `#### N`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from trl_r1zero.data.bad_rows import usable
from trl_r1zero.data.files import Row
from trl_r1zero.data.tasks.base import MATH_REWARDS, Example, Rewards, RowTask, Solution
from trl_r1zero.rewards import gsm8k_reward_fn

FINAL_NUMBER = re.compile(r"####[ \t]*(-?[0-9][0-9,]*(?:\.[0-9]+)?)\s*\Z")
# What the calculator of the paper was given and gave: "48/2 = <<48/2=24>>24".
CALCULATOR_ANNOTATION = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True)
class Gsm8kTask(RowTask):
    """The ground truth is the number after `####`, without thousands commas ("1,200" -> "1200").

    With a prompt of free text the last number of a response is its answer.

    Attributes:
        answer_line: a line "Answer:" follows each question, as the handout has it in its evaluation
            with a prompt of free text.
    """

    answer_line: bool = False

    name = "gsm8k"
    default_prompt = "r1_zero"
    default_source = "openai/gsm8k@main"
    eval_split = "test"  # there is no validation split
    rewards: ClassVar[Rewards] = {**MATH_REWARDS, "text": gsm8k_reward_fn}

    def example(self, row: Row) -> Example:
        return Example(self._question(row), _working_and_number(row)[1])

    def solutions(self, rows: Iterator[Row] | None, split: str = "train") -> Iterator[Solution]:
        """Yields the text before `####`, without calculator annotations; see `Task.solutions`."""
        return usable(self._solution, self.rows(None, split) if rows is None else rows)

    def _solution(self, row: Row) -> Solution:
        working, number = _working_and_number(row)
        if not working.strip():
            raise row.error("answer", "no working before '####'", "a worked solution")
        working = CALCULATOR_ANNOTATION.sub("", working)
        return Solution(self._question(row), working, number, row.where)

    def _question(self, row: Row) -> str:
        return row.text("question") + ("\nAnswer:" if self.answer_line else "")


def _working_and_number(row: Row) -> tuple[str, str]:
    answer = row.text("answer")
    match = FINAL_NUMBER.search(answer)
    if match is None:
        expected = "'#### ' and a number at the end"
        raise row.error(
            "answer", f"{answer[-40:]!r} at its end", expected, "write the final answer so"
        )
    return answer[: match.start()], match[1].replace(",", "")
