"""Rows from wherever a task's `source` points: a local file, a local folder, or the Hub.

* an existing file is JSON lines (plain or .gz), or by its name CSV with a header (`.csv`) or a JSON
  array (`.json`); it holds one split, whatever its name;
* an existing folder holds `{split}.jsonl` or `{split}.jsonl.gz`;
* what looks like a path but does not exist is an error, not a download;
* anything else is a Hub data set: `id`, `id:split`, `id@config` or `id@config:split`. A split
  written there has precedence over the `split` argument (for data sets that name theirs otherwise).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trl_r1zero.data.files import Row, read_csv, read_json, read_jsonl

if TYPE_CHECKING:
    from datasets import Dataset

FILE_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv")
# How a file with one of these suffixes is read; any other is JSON lines.
READERS = {".json": read_json, ".csv": read_csv}
PATH_PREFIXES = ("/", "./", "../", "~")
HUB_ID = re.compile(
    r"(?P<id>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<config>[\w.-]+))?(?::(?P<split>[^:@]+))?", re.ASCII
)


def read_source(source: str, split: str) -> Iterator[Row]:
    """Returns the rows of `source` (see the module's docstring for what it may be).

    Raises (some while iterating):
        FileNotFoundError: `source` looks like a path and nothing is there, or a folder has no file
            for `split`.
        ValueError: a malformed row, or a `source` that is neither a path nor a Hub id.
        OSError: the Hub data set cannot be had; the text says what to download and how to use it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        path = _file_of_split(path, split)
    if path.is_file():
        return READERS.get(path.suffix, read_jsonl)(path)
    if source.endswith(FILE_SUFFIXES) or source.startswith(PATH_PREFIXES):
        raise FileNotFoundError(
            f"source {source!r} looks like a local path, and {path.absolute()} does not exist; "
            "give an existing file of rows, a folder of them, or a Hub id such as name/dataset"
        )
    match = HUB_ID.fullmatch(source)
    if match is None:
        raise ValueError(
            f"source: got {source!r}, expected a local file of rows or a folder, or a Hub id as "
            "id, id:split, id@config or id@config:split"
        )
    return _hub_rows(match["id"], match["config"], match["split"] or split)


def dataset_rows(dataset: "Dataset", name: str) -> Iterator[Row]:
    """Yields the rows of a loaded data set; row numbers count from 0, as in `dataset[n]`."""
    for number, fields in enumerate(dataset):
        yield Row(where=f"{name} row {number}", fields=dict(fields))


def hub_file(hub_id: str, file_name: str) -> Path:
    """Returns the local copy of one file of a Hub data set, downloaded where there is none yet; an
    OSError that says what to download and how to use it if it cannot be had."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub_id, file_name, repo_type="dataset"))
    except OSError as error:
        command = f"hf download {hub_id} {file_name} --repo-type dataset --local-dir ."
        raise _hub_error(f"{file_name} of the data set {hub_id}", error, command, file_name) from (
            error
        )


def _hub_rows(hub_id: str, config: str | None, split: str) -> Iterator[Row]:
    # Imported here: local files do not need it, and it takes a second.
    import datasets

    name = f"{hub_id}{f'@{config}' if config else ''}:{split}"
    try:
        dataset = datasets.load_dataset(hub_id, name=config, split=split)
    except OSError as error:
        arguments = f"{hub_id!r}, {config!r}, split={split!r}"
        command = (
            f'python -c "import datasets; datasets.load_dataset({arguments})'
            f".to_json('{split}.jsonl')\""
        )
        raise _hub_error(name, error, command, f"{split}.jsonl") from error
    except ValueError as error:
        # datasets raises ValueError for a config or a split that the data set does not have.
        raise ValueError(
            f"could not load {name} from the Hugging Face Hub: {error}; write the source as "
            "id@config:split with a config and a split that the data set has"
        ) from error
    return dataset_rows(dataset, name)


def _hub_error(what: str, error: OSError, command: str, file_name: str) -> OSError:
    # ConnectionError, DatasetNotFoundError and the Hub's HTTP errors are all OSErrors.
    return OSError(
        f"could not load {what} from the Hugging Face Hub ({type(error).__name__}: {error}). Check "
        f"the id, the network, and HF_HUB_OFFLINE; or, on a machine with a network, run\n"
        f"    {command}\ncopy {file_name} here, and give its path as the source"
    )


def _file_of_split(folder: Path, split: str) -> Path:
    for suffix in (".jsonl", ".jsonl.gz"):
        if (folder / f"{split}{suffix}").is_file():
            return folder / f"{split}{suffix}"
    found = sorted(file.name for file in folder.iterdir() if file.name.endswith(FILE_SUFFIXES))
    raise FileNotFoundError(
        f"folder {folder} has no {split}.jsonl or {split}.jsonl.gz; it has: "
        f"{', '.join(found) or 'no JSON-lines file'}. Give one of these files, or another split"
    )
