"""Which pairs of responses to train and to validate on, as recipes say it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trl_r1zero.common.arguments import arg
from trl_r1zero.data.preferences import PreferencePair, load_hh, split_validation

from .row_arguments import RowArguments

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class PreferenceArguments(RowArguments):
    """Anthropic's HH pairs, some of them held out.

    Raises:
        FileNotFoundError: There is no such file or folder (on `load`).
        ValueError: Rows that cannot be used, or not enough pairs (on `load`).
    """

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
        with self.reading("train_data", self.train_data) as bad_rows:
            pairs = load_hh(self.train_data, bad_rows)
        train, validation = split_validation(pairs, self.num_eval_pairs, self.split_seed)
        return _dataset(train), _dataset(validation)


def _dataset(pairs: Sequence[PreferencePair]) -> "Dataset":
    from datasets import Dataset

    columns = ("instruction", "chosen", "rejected", "source_file")
    return Dataset.from_dict({name: [getattr(p, name) for p in pairs] for name in columns})
