"""SimpleSafetyTests (Vidgen et al. 2023, arXiv:2311.08370): 100 requests to refuse."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from trl_r1zero.data.files import Row
from trl_r1zero.data.tasks.base import Example, Rewards, RowTask

METADATA_FIELDS = ("id", "harm_area", "category")


@dataclass(frozen=True)
class SimpleSafetyTestsTask(RowTask):
    """Rows of `id`, `harm_area`, `category`, `prompts_final`. The answers are not graded.

    A source is a file of CSV with a header or of JSON lines. The question is `prompts_final` (some
    copies call it `prompt`), the other three are the metadata; the ground truth is "safe".
    """

    name = "simple_safety_tests"
    default_prompt = "zero_shot"
    default_source = "Bertievidgen/SimpleSafetyTests"
    eval_split = "test"
    rewards: ClassVar[Rewards] = {"text": None}
    output_file = "simple_safety_tests.jsonl"

    def example(self, row: Row) -> Example:
        metadata = {name: row.text(name) for name in METADATA_FIELDS}
        request = row.text("prompt" if "prompt" in row.fields else "prompts_final")
        return Example(request, "safe", metadata)

    def output_row(
        self, question: str, reply: str, metadata: Mapping[str, Any], model: str
    ) -> dict[str, str]:
        """Returns a row of the request and the answer to it."""
        return {"prompts_final": question, "output": reply}
