"""AlpacaEval (Li et al. 2023): 805 instructions, whose answers are compared with a reference's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from trl_r1zero.data.files import Row, read_json
from trl_r1zero.data.sources import hub_file
from trl_r1zero.data.tasks.base import Example, Rewards, RowTask


@dataclass(frozen=True)
class AlpacaEvalTask(RowTask):
    """Rows of `instruction`, `output`, `generator`, `dataset`. The answers are not graded.

    A source is a file of JSON lines or of one JSON array; None: `alpaca_eval.json` of
    `tatsu-lab/alpaca_eval` on the Hub. The ground truth is the reference model's `output`. The
    metadata has `dataset`, where the instruction is from, and `generator`, the reference model.
    """

    name = "alpaca_eval"
    default_prompt = "zero_shot"
    default_source = "tatsu-lab/alpaca_eval"
    eval_split = "test"
    rewards: ClassVar[Rewards] = {"text": None}
    output_file = "alpaca_eval.json"

    def rows(self, source: str | None, split: str) -> Iterator[Row]:
        # The Hub has a script to load it, which `datasets` runs no more; so its file is read.
        if source in (None, self.default_source):
            return read_json(hub_file(self.default_source, "alpaca_eval.json"))
        return super().rows(source, split)

    def example(self, row: Row) -> Example:
        metadata = {"dataset": row.text("dataset"), "generator": row.text("generator")}
        return Example(row.text("instruction"), row.text("output"), metadata)

    def output_row(
        self, question: str, reply: str, metadata: Mapping[str, Any], model: str
    ) -> dict[str, str]:
        """Returns a row as the `alpaca_eval` tool reads it."""
        dataset = metadata["dataset"]
        return {"instruction": question, "output": reply, "generator": model, "dataset": dataset}
