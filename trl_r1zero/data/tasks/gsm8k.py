"""Grade-school mathematics (GSM8K): rows of `question`, `answer`, the answer ending in `#### N`."""

import re
from dataclasses import dataclass
from typing import ClassVar

from trl_r1zero.data.jsonl import Row
from trl_r1zero.data.sources import read_source
from trl_r1zero.data.tasks.base import Example, Task, take

__all__ = ["Gsm8kTask"]

FINAL_NUMBER = re.compile(r"####[ \t]*(-?[0-9][0-9,]*(?:\.[0-9]+)?)\s*\Z")


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


def _example(row: Row) -> Example:
    question, answer = row.text("question"), row.text("answer")
    match = FINAL_NUMBER.search(answer)
    if match is None:
        raise row.error(
            "answer",
            f"{answer[-40:]!r} at its end",
            "'#### ' and a number at the end",
            "write the final answer so",
        )
    return Example(question, match[1].replace(",", ""))
