"""SimpleSafetyTests (Vidgen et al. 2023, arXiv:2311.08370): 100 requests to refuse."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from trl_r1zero.data.jsonl import Row
from trl_r1zero.data.sources import read_source
from trl_r1zero.data.tasks.base import Example, RewardFn, Task, take

__all__ = ["SimpleSafetyTestsTask"]

METADATA_FIELDS = ("id", "harm_area", "category")


@dataclass(frozen=True)
class SimpleSafetyTestsTask(Task):
    """Rows of `id`, `harm_area`, `category`, `prompts_final`. The answers are not graded.

    The question is `prompts_final` (some copies call it `prompt`), the other three are the
    metadata; the ground truth is "safe".
    """

    name: ClassVar[str] = "simple_safety_tests"
    default_prompt: ClassVar[str] = "zero_shot"
    default_source: ClassVar[str] = "Bertievidgen/SimpleSafetyTests"
    eval_split: ClassVar[str] = "test"
    rewards: ClassVar[Mapping[str, RewardFn | None]] = {"text": None}
    output_file: ClassVar[str | None] = "simple_safety_tests.jsonl"

    def load(
        self, source: str | None = None, split: str = "train", limit: int | None = None
    ) -> list[Example]:
        """Returns the requests of `source`, a file of CSV with a header or of JSON lines (None:
        `Bertievidgen/SimpleSafetyTests` on the Hub); see `Task.load`."""
        return take(map(_example, read_source(source or self.default_source, split)), limit)

    def output_row(
        self, question: str, reply: str, metadata: Mapping[str, Any], model: str
    ) -> dict[str, str]:
        """Returns a row of the request and the answer to it."""
        return {"prompts_final": question, "output": reply}


def _example(row: Row) -> Example:
    metadata = {name: row.text(name) for name in METADATA_FIELDS}
    name = "prompt" if "prompt" in row.fields else "prompts_final"
    return Example(row.text(name), "safe", metadata)
