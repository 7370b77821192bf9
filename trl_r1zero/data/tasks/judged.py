"""Tasks whose answers nothing grades: AlpacaEval and SimpleSafetyTests."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from trl_r1zero.data.files import Row, read_json
from trl_r1zero.data.sources import hub_file
from trl_r1zero.data.tasks.base import Example, Rewards, RowTask


class _JudgedTask(RowTask):
    default_prompt = "zero_shot"
    eval_split = "test"
    rewards: ClassVar[Rewards] = {"text": None}


@dataclass(frozen=True)
class AlpacaEvalTask(_JudgedTask):
    """AlpacaEval (Li et al. 2023): 805 instructions, whose answers are compared with a reference's.

    Rows have `instruction`, `output`, `generator`, `dataset`. A source is a file of JSON lines or
    of one JSON array; None: `alpaca_eval.json` of `tatsu-lab/alpaca_eval` on the Hub. The ground
    truth is the reference model's `output`. The metadata has `dataset`, where the instruction is
    from, and `generator`, the reference model.
    """

    name = "alpaca_eval"
    default_source = "tatsu-lab/alpaca_eval"
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


@dataclass(frozen=True)
class SimpleSafetyTestsTask(_JudgedTask):
    """SimpleSafetyTests (Vidgen et al. 2023, arXiv:2311.08370): 100 requests to refuse.

    Rows have `id`, `harm_area`, `category`, `prompts_final`. A source is a file of CSV with a
    header or of JSON lines. The question is `prompts_final` (some copies call it `prompt`), the
    other three are the metadata; the ground truth is "safe".
    """

    name = "simple_safety_tests"
    default_source = "Bertievidgen/SimpleSafetyTests"
    output_file = "simple_safety_tests.jsonl"

    def example(self, row: Row) -> Example:
        metadata = {name: row.text(name) for name in ("id", "harm_area", "category")}
        request = row.text("prompt" if "prompt" in row.fields else "prompts_final")
        return Example(request, "safe", metadata)

    def output_row(
        self, question: str, reply: str, metadata: Mapping[str, Any], model: str
    ) -> dict[str, str]:
        """Returns a row of the request and the answer to it."""
        return {"prompts_final": question, "output": reply}
