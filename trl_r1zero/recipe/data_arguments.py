"""Which pairs or instructions to train and to validate on, and what becomes of rows that cannot be
used, as recipes say it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

from trl_r1zero.common.arguments import arg
from trl_r1zero.data.bad_rows import BadRows
from trl_r1zero.data.preferences import PreferencePair, load_hh, split_validation

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from trl_r1zero.data.packing import PackedSFTDataset


@dataclass
class RowArguments:
    """Of every recipe that reads rows."""

    on_bad_row: Literal["error", "skip"] = arg(
        "error",
        "Rows that cannot be used (an empty answer, a prompt that leaves no room for a completion, "
        "...): error names them, skip leaves them out and counts them.",
        kw_only=True,
    )

    @cached_property
    def skipped_rows(self) -> dict[str, dict[str, Any]]:
        """Key of a data set that was read -> `BadRows.facts`, where rows of it were left out."""
        return {}

    @contextmanager
    def reading(self, key: str, source: str | None) -> Iterator[BadRows]:
        """The bad rows of a data set, which `on_bad_row` decides about at the end of the `with`."""
        bad_rows = BadRows(self.on_bad_row, f"{key} ({source})" if source else key)
        yield bad_rows
        bad_rows.finish()
        if bad_rows.errors:
            self.skipped_rows[key] = bad_rows.facts()


@dataclass
class PreferenceArguments(RowArguments):
    """Anthropic's HH pairs, some of them held out. On `load`, FileNotFoundError if there is no such
    file or folder, a ValueError for rows that cannot be used or not enough pairs."""

    train_data: str = arg(
        "data/hh",
        "Folder of HH files, or one such file (JSON lines of chosen and rejected "
        "conversations, plain or .gz). Only single-turn pairs are used.",
    )
    num_eval_pairs: int = arg(200, "Pairs held out for validation, with their instructions.")
    split_seed: int = arg(0, "Which pairs these are. Not the training seed.")

    def load(self) -> tuple["Dataset", "Dataset"]:
        """The pairs to train and to validate on: `instruction`, `chosen`, `rejected`,
        `source_file`."""
        from datasets import Dataset

        with self.reading("train_data", self.train_data) as bad_rows:
            pairs = load_hh(self.train_data, bad_rows)
        train, validation = split_validation(pairs, self.num_eval_pairs, self.split_seed)
        columns = ("instruction", "chosen", "rejected", "source_file")

        def made(pairs: Sequence[PreferencePair]) -> Dataset:
            return Dataset.from_dict({name: [getattr(p, name) for p in pairs] for name in columns})

        return made(train), made(validation)


@dataclass
class InstructionArguments(RowArguments):
    """Files of instructions and responses, packed into chunks of one length. On `load`,
    FileNotFoundError if there is no such file, a ValueError for rows that cannot be used or not one
    chunk of tokens."""

    train_data: str = arg(
        "data/instructions/train.jsonl.gz", "JSON-lines file of prompt and response, plain or .gz."
    )
    eval_data: str | None = arg(
        "data/instructions/test.jsonl.gz",
        "The same for validation. null: none, with eval_strategy no.",
    )
    seq_length: int = arg(512, "Tokens in a chunk (context length).")
    shuffle: bool = arg(True, "Put the documents of train_data into a random order, by seed.")
    cache_dir: str | None = arg(None, "Where tokens are kept. Unset: the user's cache folder.")

    def load(
        self, tokenizer: "PreTrainedTokenizerBase", seed: int, show_progress: bool = True
    ) -> tuple["PackedSFTDataset", "PackedSFTDataset | None"]:
        """The chunks to train and to validate on; tokenises files that are new."""
        from trl_r1zero.data.packing import PackedSFTDataset

        def pack(key: str, path: str, shuffle: bool) -> PackedSFTDataset:
            shown = partial(PackedSFTDataset, show_progress=show_progress)
            with self.reading(key, path) as bad_rows:
                chunks = tokenizer, path, self.seq_length, shuffle
                return shown(*chunks, seed=seed, cache_dir=self.cache_dir, on_bad_row=bad_rows)

        train, path = pack("train_data", self.train_data, self.shuffle), self.eval_data
        return train, None if path is None else pack("eval_data", path, shuffle=False)
