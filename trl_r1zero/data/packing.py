"""Packed instruction tuning: documents end to end, cut into chunks of one length, in batches.

A file is tokenised once per tokenizer. The tokens lie on disk and are read from there, so neither
text nor tokens have to fit into memory.

A cache entry is a folder named by a hash of all that decides what is in it: the bytes of the data
file, what the tokenizer does, and the template. It holds two flat arrays:

    tokens.bin    int32, the documents of the file in its order, end to end
    ends.bin      int64, for each document the number of tokens up to and with its last

and, where there are rows that cannot be used and are not in it, `bad_rows.json`.

Chunks are cut, and documents put into another order, while reading; so all chunk lengths and seeds
share one entry. An entry is written under another name and gets its own when complete: there is
never half an entry, and of several processes that write one, the first to finish provides it.
"""

import hashlib
import json
import operator
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from trl_r1zero.data.bad_rows import BadRowError, BadRows, reading, usable
from trl_r1zero.data.files import Row, describe, existing_file, read_jsonl
from trl_r1zero.data.prompts import ALPACA_TEMPLATE, format_alpaca

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Raise it when the code below writes something else for the same file, tokenizer and template.
CACHE_VERSION = 1
# A batch is tokenised when it has so many documents, or characters: a token takes about 150 bytes
# while its batch is tokenised, and documents may be books.
DOCUMENTS_PER_BATCH = 256
CHARACTERS_PER_BATCH = 1_000_000
BUILDING = ".building-"
BAD_ROWS_FILE = "bad_rows.json"
# What a killed process left behind is removed when nothing was written to it for so long.
ABANDONED_SECONDS = 24 * 60 * 60


class PackedSFTDataset(Dataset[dict[str, torch.Tensor]]):
    """Chunks of `seq_length` tokens of instruction data, for a loss on every token.

    A document is one row's prompt and response in the Alpaca template, with the tokens that the
    tokenizer itself puts around a text, and its end-of-text token behind it, unless the document
    already ends in one. Of the N tokens of all documents, end to end, chunk i is

        input_ids = tokens[i * seq_length : (i + 1) * seq_length]
        labels = tokens[i * seq_length + 1 : (i + 1) * seq_length + 1]

    so there are (N - 1) // seq_length of them, and what is left over is dropped. A document may
    begin in one chunk and end in another; several may share one, and see one another. `labels` are
    the next tokens already: they are not for a transformers model, which would shift them again.
    Under a launcher, let one process go first, or each tokenises the file.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        dataset_path: str | Path,
        seq_length: int,
        shuffle: bool,
        *,
        seed: int = 0,
        cache_dir: str | Path | None = None,
        show_progress: bool = True,
        on_bad_row: str | BadRows = "error",
    ) -> None:
        """
        Args:
            tokenizer: a transformers tokenizer with an end-of-text token.
            dataset_path: a JSON-lines file, plain or (named `*.gz`) compressed, of rows with
                `prompt`, a non-empty string, and `response`, a string.
            seq_length: tokens in a chunk, at least 1.
            shuffle: puts the documents into a random order before they are cut.
            seed: of that order.
            cache_dir: where tokens are kept, 4 bytes for each; None for `default_cache_dir()`.
            show_progress: shows a bar while tokenising.
            on_bad_row: `error`, or `skip`: rows that cannot be used are left out and logged.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a tokenizer without an end-of-text token; rows that cannot be used; a broken
                file, or one without rows; fewer than seq_length + 1 tokens; a seq_length below 1.
            OSError: the cache folder cannot be written, or the disk is full.
            RuntimeError: the data file changed while it was read; a damaged cache entry.
        """
        if seq_length < 1:
            raise ValueError(f"seq_length: got {seq_length}, expected at least 1")
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "got a tokenizer whose eos_token_id is None, but a document needs an end; set one "
                "that the model knows, for example tokenizer.eos_token = '<|endoftext|>'"
            )
        path = existing_file(dataset_path, "JSON-lines")
        folder = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
        self.seq_length = seq_length
        self._seed = seed if shuffle else None
        with reading(str(path), on_bad_row) as bad_rows:
            self._entry = _find_or_build(
                tokenizer, path, folder.absolute(), show_progress, bad_rows
            )
        self._open()
        if len(self) == 0:
            raise ValueError(
                f"{path}: got {self.num_tokens} tokens in {self.num_documents} documents, expected "
                f"at least {seq_length + 1} (seq_length + 1), for one chunk and its last label; "
                "give a smaller seq_length or more rows"
            )

    @property
    def num_documents(self) -> int:
        """Rows of the file that can be used."""
        return len(self._ends)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents, those left over after the last chunk too."""
        return len(self._tokens)

    def __len__(self) -> int:
        return (self.num_tokens - 1) // self.seq_length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Returns `input_ids` and `labels` of one chunk, each (seq_length,) long."""
        index = operator.index(index)
        chunk = index + len(self) if index < 0 else index
        # An IndexError also ends `for chunk in dataset`.
        if not 0 <= chunk < len(self):
            raise IndexError(f"got index {index}, but there are {len(self)} chunks")
        places = np.arange(chunk * self.seq_length, (chunk + 1) * self.seq_length + 1)
        documents = np.searchsorted(self._ends, places, side="right")
        span = torch.from_numpy(self._tokens[places + self._shifts[documents]].astype(np.int64))
        # Cloned: a change in place of one must not change the other.
        return {"input_ids": span[:-1], "labels": span[1:].clone()}

    def _open(self) -> None:
        self._tokens, ends = _open_entry(self._entry)
        order = np.arange(len(ends))
        if self._seed is not None:
            generator = torch.Generator().manual_seed(self._seed)
            order = torch.randperm(len(ends), generator=generator).numpy()
        # Of the documents in their order, which may be shuffled: where each ends, and how far its
        # tokens are from there on disk.
        self._ends = np.cumsum(np.diff(ends, prepend=0)[order])
        self._shifts = ends[order] - self._ends

    # Pickled for the workers of a DataLoader that are spawned: by name, without the tokens.

    def __getstate__(self) -> dict[str, Any]:
        return {"seq_length": self.seq_length, "_seed": self._seed, "_entry": self._entry}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def iterate_batches(
    dataset: Dataset[dict[str, torch.Tensor]],
    batch_size: int,
    shuffle: bool,
    *,
    seed: int | None = None,
) -> DataLoader[dict[str, torch.Tensor]]:
    """Returns an iterable of batches; each iteration is one pass over all items.

    Args:
        dataset: items are dicts of tensors, as those of `PackedSFTDataset`.
        batch_size: B, at least 1; the last batch may be smaller.
        shuffle: each pass in a random order of its own, otherwise in that of the dataset.
        seed: of these orders; None draws them from torch's global generator.

    Returns:
        A `DataLoader` of dicts of stacked tensors, (B, seq_length); its length counts batches.

    Raises:
        ValueError: a batch_size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, generator=generator)


def default_cache_dir() -> Path:
    """Returns `trl_r1zero/packed_sft` in $HF_HOME if that is set (who sets it has said which disk
    is for models and data), otherwise in $XDG_CACHE_HOME, and without either in ~/.cache."""
    root = os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "trl_r1zero" / "packed_sft"


# Cache entries.


def _find_or_build(
    tokenizer: "PreTrainedTokenizerBase",
    path: Path,
    folder: Path,
    show_progress: bool,
    bad_rows: BadRows,
) -> Path:
    before = _modified(path)
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    parts = [CACHE_VERSION, content, _tokenizer_state(tokenizer), ALPACA_TEMPLATE]
    entry = folder / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    if entry.is_dir():
        _recall_bad_rows(entry, path, bad_rows)
        return entry
    # A unique name, so that two processes never write to the same files.
    building = folder / f"{BUILDING}{entry.name}-{uuid4().hex}"
    try:
        building.mkdir(parents=True)
    except OSError as error:
        do = "set cache_dir to a folder that can be written"
        raise OSError(f"cannot make the cache folder {building} ({error}); {do}") from error
    try:
        _remove_abandoned(folder)
        # All of it before the tokenising, which takes its time.
        num_documents = sum(1 for _ in usable(instruction_and_response, read_jsonl(path)))
        bad_rows.check()
        with reading(str(path), BadRows("skip")):  # they were counted above
            _write_documents(tokenizer, path, building, num_documents if show_progress else None)
        if bad_rows.errors:
            bad = [[error.number, error.problem, error.reason] for error in bad_rows.errors]
            facts = {"read": bad_rows.read, "bad": bad}
            (building / BAD_ROWS_FILE).write_text(json.dumps(facts), encoding="utf-8")
        if _modified(path) != before:
            raise RuntimeError(
                f"{path} changed while it was read, expected a file that stays as it is; wait "
                "until it is written, then try again"
            )
        try:
            building.rename(entry)
        except OSError:
            # Another process may have been faster; what it wrote is the same.
            if not entry.is_dir():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return entry


def _recall_bad_rows(entry: Path, path: Path, bad_rows: BadRows) -> None:
    """Counts the bad rows of the file that an entry was made of."""
    if (entry / BAD_ROWS_FILE).is_file():
        facts = json.loads((entry / BAD_ROWS_FILE).read_text(encoding="utf-8"))
        for number, problem, reason in facts["bad"]:
            bad_rows.add(BadRowError(f"{path}:{number}", problem, reason))
        bad_rows.read = facts["read"]
        bad_rows.check()


def _open_entry(entry: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens and the ends of an entry, both mapped into memory."""
    try:
        tokens = np.memmap(entry / "tokens.bin", dtype=np.int32, mode="r")
        ends = np.memmap(entry / "ends.bin", dtype=np.int64, mode="r")
        if ends[-1] == len(tokens):
            return tokens, ends
    except (FileNotFoundError, ValueError):  # ValueError: empty, or not a whole number of items
        pass
    raise RuntimeError(
        f"got the cache entry {entry}, but files in it are missing or cut off; delete this folder, "
        "and it is made again"
    )


def _remove_abandoned(folder: Path) -> None:
    for building in folder.glob(f"{BUILDING}*"):
        try:
            written = [_modified(file)[0] for file in (building, *building.glob("*"))]
        except FileNotFoundError:
            continue  # completed or given up in this moment
        if time.time_ns() - max(written) > ABANDONED_SECONDS * 10**9:
            shutil.rmtree(building, ignore_errors=True)


def _modified(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _tokenizer_state(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Returns a hash of what decides which tokens a text becomes."""
    # The last one says whether "</s>" in a text is the token or four characters.
    parts = [str(type(tokenizer)), tokenizer.eos_token_id, tokenizer.split_special_tokens]
    digest = hashlib.sha256(json.dumps(parts).encode())
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        # What some earlier call left behind; documents are neither padded nor cut.
        del backend["padding"], backend["truncation"]
        digest.update(json.dumps(backend).encode())
    else:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            for file in sorted(Path(folder).rglob("*")):
                if file.is_file():
                    digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


# Tokenising.


def _write_documents(
    tokenizer: "PreTrainedTokenizerBase", path: Path, folder: Path, total: int | None
) -> None:
    """Writes tokens.bin and ends.bin, holding one batch of documents at a time; `total`: how many
    documents there are, None for no progress bar."""
    end = 0
    name = f"Tokenising {path.name}"
    with (
        (folder / "tokens.bin").open("wb") as tokens_file,
        (folder / "ends.bin").open("wb") as ends_file,
        tqdm(total=total, desc=name, unit=" documents", disable=total is None) as bar,
    ):
        for texts in _batches(path):
            documents = _tokenize(tokenizer, texts)
            ends = end + np.cumsum([len(document) for document in documents], dtype=np.int64)
            np.concatenate([np.array(ids, dtype=np.int32) for ids in documents]).tofile(tokens_file)
            ends.tofile(ends_file)
            end = int(ends[-1])
            bar.update(len(texts))
        # The rename must not reach the disk before what it names.
        for file in (tokens_file, ends_file):
            file.flush()
            os.fsync(file.fileno())


def _batches(path: Path) -> Iterator[list[str]]:
    """Yields the documents of a file, some at a time."""
    texts: list[str] = []
    for pair in usable(instruction_and_response, read_jsonl(path)):
        texts.append(format_alpaca(*pair))
        if len(texts) >= DOCUMENTS_PER_BATCH or sum(map(len, texts)) >= CHARACTERS_PER_BATCH:
            yield texts
            texts = []
    if texts:
        yield texts


def instruction_and_response(row: Row) -> tuple[str, str]:
    """Returns the fields `prompt` and `response` of a row; an empty response will do."""
    response = row.fields.get("response")
    if not isinstance(response, str):
        got = "nothing" if response is None else describe(response)
        raise row.error("response", got, "a string")
    return row.text("prompt"), response


def _tokenize(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    # verbose: a document may well be longer than the model's context, as it will be cut.
    ids = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    # Some tokenizers, and some authors of responses, have put an end token there already.
    return [document if document[-1:] == [end] else [*document, end] for document in ids]
