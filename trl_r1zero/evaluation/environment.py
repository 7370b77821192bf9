"""What a run depended on besides its settings: versions, commit, command, hardware."""

import hashlib
import json
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from .files import file_sha256

_PACKAGES = (
    *("trl-r1zero", "torch", "trl", "transformers", "accelerate"),
    *("datasets", "peft", "vllm", "deepspeed"),
)


def environment(num_processes: int = 1) -> dict[str, Any]:
    """Versions, commit, command and hardware of this process; `num_processes`: of the run."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": package_versions(),
        "commit": _commit(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "num_processes": num_processes,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def package_versions() -> dict[str, str]:
    """Installed versions of this package and of those that decide what it computes."""
    versions = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, `+` behind it if it is changed."""
    package = Path(__file__).resolve().parents[1]

    def git(*command: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *command], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:  # there is no git on this machine
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie in another checkout: its own files must be tracked there.
    if not git("ls-files", "."):
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}+" if commit and git("status", "--porcelain", ".") else commit


# Which model it is

_ADAPTER_CONFIG = "adapter_config.json"
# One of them makes a folder a model's.
_CONFIGS = ("config.json", _ADAPTER_CONFIG)
# What an answer depends on, by the names that transformers and PEFT write. Other files of a
# checkpoint (optimizer, trainer's state) change nothing that is sampled.
_PARTS = {
    "config": (*_CONFIGS, "generation_config.json"),
    "tokenizer": (
        *("tokenizer*", "special_tokens_map.json", "added_tokens.json"),
        *("vocab.*", "merges.txt", "*.model"),
    ),
    "weights": (
        *("*.safetensors", "*.safetensors.index.json"),
        *("pytorch_model*.bin", "pytorch_model.bin.index.json", "adapter_model.bin"),
    ),
}
# Reading and hashing shards at once; hashlib lets other threads run meanwhile.
_THREADS = 4
# 64 bits are enough to see a change, and can be read in a message.
_DIGITS = 16


def model_version(name: str, key: str = "model") -> dict[str, Any]:
    """What tells a model from another of the same name, as JSON can hold it.

    Of a folder these are its `model_files` (see there), of a hub id the `model_revision`: the
    commit that its branch `main` names; without a network, the commit in the cache. Messages call
    the name `key`.

    Raises:
        ValueError: There is neither a folder with a model nor a hub's model that can be reached.
    """
    if Path(name).is_dir():
        if not any((Path(name) / config).is_file() for config in _CONFIGS):
            raise ValueError(
                f"{key}: the folder {name!r} has no {' and no '.join(_CONFIGS)}, so it is not a "
                "model's; give the folder that save_pretrained wrote, such as a run's `final`"
            )
        return folder_version(name)
    return {"model_revision": _hub_commit(name, key)}


def folder_version(name: str) -> dict[str, Any]:
    """`model_version` of a model that is loaded already: empty unless it is a folder here."""
    return {"model_files": model_files(name)} if Path(name).is_dir() else {}


def model_files(folder: str | Path) -> dict[str, Any]:
    """Fingerprints of a model's folder: of its `config`, its `tokenizer` and its `weights`.

    Each is the first 16 digits of a sha256 over names and contents, so a copy has the same ones. An
    adapter has also the fingerprints of its base model, `base`, where that is a folder.

    All bytes are read, because fine-tuning may leave most of them as they are: about 0.7 GiB a
    second and core, once in an evaluation; loading the model then finds the files in memory.
    """
    folder = Path(folder)
    prints: dict[str, Any] = {}
    with ThreadPoolExecutor(_THREADS) as threads:
        for part, patterns in _PARTS.items():
            matches = {file for pattern in patterns for file in folder.glob(pattern)}
            files = sorted(file for file in matches if file.is_file())
            hashes = threads.map(file_sha256, files)
            if lines := [f"{sha} {file.name}" for sha, file in zip(hashes, files, strict=True)]:
                sha = hashlib.sha256("\n".join(lines).encode()).hexdigest()
                prints[part] = sha[:_DIGITS]
    if (folder / _ADAPTER_CONFIG).is_file():
        adapter = json.loads((folder / _ADAPTER_CONFIG).read_text(encoding="utf-8"))
        base = adapter.get("base_model_name_or_path")
        if base and Path(base).is_dir():
            prints["base"] = model_files(base)
    return prints


def _hub_commit(name: str, key: str) -> str:
    """The commit of a hub id: asked for as those ask who load the model, so it is the same."""
    try:
        try:
            path = hf_hub_download(name, _CONFIGS[0])
        except LocalEntryNotFoundError:
            raise  # not reachable, while the one below says that the model has no such file
        except EntryNotFoundError:
            path = hf_hub_download(name, _ADAPTER_CONFIG)
    except (OSError, ValueError, EntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{key}: there is no folder {name!r}, and no such model of the hub that can be "
            f"reached ({type(error).__name__}: {reason}); give the path of a model's folder, or a "
            "hub id"
        ) from error
    return Path(path).parent.name  # .../snapshots/COMMIT/config.json
