"""Part (f) of the GPU check: kill -9 of a vLLM server's engine while it samples."""

import json
import os
import signal
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from check_server import (
    NUM_STEPS,
    check_run,
    running_trainer,
    server_processes,
    watch_probes,
)
from check_setup import Recorder, Setup, require

from trl_r1zero.generation.vllm_client import VLLMServerEngine

# vLLM names its processes so.
_ENGINE_PREFIX = "VLLM::"
# Of the rollouts of a step, on a CPU: so many are those of the undisturbed run. All were, where
# this was tried; but what is sampled together may change a last digit.
_LEAST_EQUAL = 0.9


def kill(setup: Setup, recorder: Recorder) -> str:
    """The run of part (a), whose engine is killed as soon as step 2's first row is sampled."""
    folder = recorder.folder / "run"
    with running_trainer(setup, recorder, folder) as trainer:
        probes = watch_probes(trainer)
        killed: list[int] = []
        recorder.doing("training")
        with killing_stream(lambda: trainer.grpo_step == 1, killed):
            trainer.train()
        require(bool(killed), "the engine was not killed: nothing was sampled in step 2")
    recorder.record(killed_processes=killed, probes=probes)
    lines = check_run(folder, probes, setup)
    recorder.record(steps=lines)
    undisturbed = setup.output / "parts" / "grpo" / "run"
    compared = compare_runs(undisturbed, folder) if (undisturbed / "rollouts").is_dir() else None
    recorder.record(equal_rollouts=compared)
    said = f"all {NUM_STEPS} steps, probe at most {max(probes):.1g} nats"
    if compared is None:
        return f"{said}; no undisturbed run to compare with (part grpo)"
    shares = ", ".join(f"{share:.0%}" for share in compared)
    # In float32 on one machine the seeds decide; in bfloat16 what is batched together does too.
    require(
        setup.on_cuda or min(compared) >= _LEAST_EQUAL,
        f"of the rollouts so many are as in the undisturbed run, by step: {shares}",
    )
    return f"{said}; rollouts as in the undisturbed run, by step: {shares}"


@contextmanager
def killing_stream(when: Callable[[], bool], killed: list[int]) -> Iterator[None]:
    """Within it, the server's engine is killed once, after a row of a stream `when` it holds."""
    stream = VLLMServerEngine.stream

    def stream_and_kill(self: VLLMServerEngine, *args: Any) -> Iterator[Any]:
        for row in stream(self, *args):
            yield row
            if when() and not killed:
                killed.extend(kill_engines())

    VLLMServerEngine.stream = stream_and_kill  # type: ignore[method-assign]
    try:
        yield
    finally:
        VLLMServerEngine.stream = stream  # type: ignore[method-assign]


def kill_engines() -> list[int]:
    """kill -9 for the server's engine and its workers, which do the work; their pids."""
    pids = [one.pid for one in server_processes() if _command(one).startswith(_ENGINE_PREFIX)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pids


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def compare_runs(first: Path, second: Path) -> list[float]:
    """By step, the share of the rollouts that are the same text with the same reward."""
    shares = []
    for step in range(1, NUM_STEPS + 1):
        rows = [_rollouts(folder, step) for folder in (first, second)]
        require(len(rows[0]) == len(rows[1]), f"step {step} has {[len(r) for r in rows]} rollouts")
        shares.append(statistics.mean(a == b for a, b in zip(*rows, strict=True)))
    return shares


def _rollouts(folder: Path, step: int) -> list[tuple[Any, ...]]:
    path = folder / "rollouts" / f"grpo_step_{step:05d}.jsonl"
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [(row["prompt"], row["response"], row["length"], row["reward"]) for row in rows]
