"""Which instruction data to train and to validate on, as recipes say it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trl_r1zero.data.packing import PackedSFTDataset


@dataclass
class InstructionArguments:
    """Files of instructions and responses, packed into chunks of one length.

    Raises:
        FileNotFoundError: There is no such file (on `load`).
        ValueError: A malformed row, or not one chunk of tokens (on `load`).
    """

    train_data: str = field(
        default="data/instructions/train.jsonl.gz",
        metadata={"help": "JSON-lines file of prompt and response, plain or .gz."},
    )
    eval_data: str | None = field(
        default="data/instructions/test.jsonl.gz",
        metadata={"help": "The same for validation. null: none, with eval_strategy no."},
    )
    seq_length: int = field(default=512, metadata={"help": "Tokens in a chunk (context length)."})
    shuffle: bool = field(
        default=True,
        metadata={"help": "Put the documents of train_data into a random order, by seed."},
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Where tokens are kept. Unset: the user's cache folder."},
    )

    def load(
        self, tokenizer: "PreTrainedTokenizerBase", seed: int, show_progress: bool = True
    ) -> tuple["PackedSFTDataset", "PackedSFTDataset | None"]:
        """The chunks to train and to validate on; tokenises files that are new."""
        from trl_r1zero.data.packing import PackedSFTDataset

        train = PackedSFTDataset(
            tokenizer,
            self.train_data,
            self.seq_length,
            self.shuffle,
            seed=seed,
            cache_dir=self.cache_dir,
            show_progress=show_progress,
        )
        if self.eval_data is None:
            return train, None
        validation = PackedSFTDataset(
            tokenizer,
            self.eval_data,
            self.seq_length,
            shuffle=False,
            cache_dir=self.cache_dir,
            show_progress=show_progress,
        )
        return train, validation
