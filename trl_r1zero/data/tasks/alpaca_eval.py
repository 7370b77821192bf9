"""AlpacaEval (Li et al. 2023): 805 instructions, whose answers are compared with a reference's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from trl_r1zero.data.jsonl import Row, read_json
from trl_r1zero.data.sources import hub_file, read_source
from trl_r1zero.data.tasks.base import Example, RewardFn, Task, take

__all__ = ["AlpacaEvalTask"]


@dataclass(frozen=True)
class AlpacaEvalTask(Task):
    """Rows of `instruction`, `output`, `generator`, `dataset`. The answers are not graded.

    The ground truth is the reference model's `output`. The metadata has `dataset`, where the
    instruction is from, and `generator`, the reference model.
    """

    name: ClassVar[str] = "alpaca_eval"
    default_prompt: ClassVar[str] = "zero_shot"
    default_source: ClassVar[str] = "tatsu-lab/alpaca_eval"
    hub_file_name: ClassVar[str] = "alpaca_eval.json"
    eval_split: ClassVar[str] = "test"
    rewards: ClassVar[Mapping[str, RewardFn | None]] = {"text": None}
    output_file: ClassVar[str | None] = "alpaca_eval.json"

    def load(
        self, source: str | None = None, split: str = "train", limit: int | None = None
    ) -> list[Example]:
        """Returns the instructions of `source`, a file of JSON lines or of one JSON array (None:
        `alpaca_eval.json` of `tatsu-lab/alpaca_eval` on the Hub); see `Task.load`."""
        return take(map(_example, self._rows(source or self.default_source, split)), limit)

    def _rows(self, source: str, split: str) -> Iterator[Row]:
        # The Hub has a script to load it, which `datasets` runs no more; so its file is read.
        if source == self.default_source:
            return read_json(hub_file(source, self.hub_file_name))
        return read_source(source, split)

    def output_row(
        self, question: str, reply: str, metadata: Mapping[str, Any], model: str
    ) -> dict[str, str]:
        """Returns a row as the `alpaca_eval` tool reads it."""
        return {
            "instruction": question,
            "output": reply,
            "generator": model,
            "dataset": metadata["dataset"],
        }


def _example(row: Row) -> Example:
    metadata = {"dataset": row.text("dataset"), "generator": row.text("generator")}
    return Example(row.text("instruction"), row.text("output"), metadata)
