"""Pass rates of the start's policy on the training problems, kept on disk for later runs.

A file of JSON lines: first what the rates are of, then one line for each problem. A measurement
that broke off goes on behind the last problem that is there.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trl_r1zero.common.processes import from_main_process
from trl_r1zero.evaluation.environment import model_version
from trl_r1zero.evaluation.files import differing, json_line, write_atomically


def fingerprint(parts: Iterable[bytes]) -> str:
    """The first 16 digits of a sha256 over some bytes."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()[:16]


def weights_identity(model: nn.Module, name: str) -> dict[str, Any]:
    """What tells a model from others: a fingerprint of its weights as they are in memory, or, where
    they are shared out already (ZeRO-3), the version of the model called `name`."""
    weights = sorted(model.named_parameters(), key=lambda pair: pair[0])
    if any(hasattr(weight, "ds_id") for _, weight in weights):
        return model_version(name, "model_name_or_path")
    return {
        "weights": fingerprint(
            f"{one} {weight.dtype} {tuple(weight.shape)}\n".encode()
            + weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            for one, weight in weights
        )
    }


def file_of(folder: Path, identity: Mapping[str, Any]) -> Path:
    """Where the pass rates of an identity are kept."""
    name = Path(str(identity["model"]["name"])).name or "model"
    return folder / f"{name}-{fingerprint([json.dumps(identity, sort_keys=True).encode()])}.jsonl"


def read(path: Path, identity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The problems that are there, in order; a ValueError if the file is of something else."""
    if not path.is_file():
        return []
    try:
        first, *lines = map(json.loads, path.read_bytes().splitlines())
        wrong = differing(first["identity"], json.loads(json.dumps(identity)))
        for number, line in enumerate(lines):
            if line["problem"] != number or not 0 <= line["right"] <= line["of"]:
                wrong.append(f"the line of problem {number} is {line}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = [repr(error)]
    if wrong:
        raise ValueError(
            f"{path} has not the pass rates of this run, remove it: {'; '.join(wrong)}"
        )
    return lines


def measured(
    path: Path,
    identity: Mapping[str, Any],
    questions: Sequence[str],
    measure: Callable[[range], list[tuple[int, int]]],
    chunk: int,
) -> tuple[list[dict[str, Any]], int]:
    """The pass rates of all problems, from the file and by measuring what it lacks.

    A collective call. Runs that measure the same at the same time write the same.

    Args:
        path, identity: See `read`; the identity has the `completions` of each problem.
        questions: Of each problem, to be read in the file.
        measure: Right completions and sampled tokens of each of some problems.
        chunk: Problems measured at a time, after which the file is written.

    Returns:
        A line for each problem; and how many of them had to be measured.
    """
    lines = from_main_process(lambda: read(path, identity))
    there = len(lines)
    while len(lines) < len(questions):
        problems = range(len(lines), min(len(lines) + chunk, len(questions)))
        for problem, (right, tokens) in zip(problems, measure(problems), strict=True):
            of, question = identity["completions"], questions[problem][:200]
            facts = {"problem": problem, "right": right, "of": of, "tokens": tokens}
            lines.append({**facts, "question": question})
        from_main_process(lambda: _write(path, [{"identity": identity}, *lines]))
    return lines, len(lines) - there


def _write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f"{path.name}.{os.getpid()}")  # another run may write the same
    write_atomically(own, b"".join(map(json_line, lines)))
    os.replace(own, path)
