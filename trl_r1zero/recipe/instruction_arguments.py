"""Which instruction data to train and to validate on, as recipes say it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trl_r1zero.common.arguments import arg

from .row_arguments import RowArguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trl_r1zero.data.packing import PackedSFTDataset


@dataclass
class InstructionArguments(RowArguments):
    """Files of instructions and responses, packed into chunks of one length.

    Raises:
        FileNotFoundError: There is no such file (on `load`).
        ValueError: Rows that cannot be used, or not one chunk of tokens (on `load`).
    """

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
            with self.reading(key, path) as bad_rows:
                return PackedSFTDataset(
                    tokenizer,
                    path,
                    self.seq_length,
                    shuffle,
                    seed=seed,
                    cache_dir=self.cache_dir,
                    show_progress=show_progress,
                    on_bad_row=bad_rows,
                )

        train, path = pack("train_data", self.train_data, self.shuffle), self.eval_data
        return train, None if path is None else pack("eval_data", path, shuffle=False)
