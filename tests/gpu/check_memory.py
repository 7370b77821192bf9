"""Part (d) of the GPU check: the peak memory of training steps against the memory model's."""

import ctypes
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from check_setup import CheckSkipped, Recorder, Setup, require
from optimizer_sides import OurSide
from rollout_workloads import StoredBatch

from trl_r1zero.devices.memory import GIB, ModelShape, TrainingSetup, training_memory

# Predicted over measured. The model is to tell what fits; a tenth of a device stays free besides.
TOLERANCE = 0.2
PROMPT, COMPLETION = 128, 384
# From malloc.h: memory that is freed goes back at once, or resident memory would be what was once
# used.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class Case:
    """A training step.

    Attributes:
        name: For the table.
        rows: Of a micro-batch; there are two in a step.
        settings: Of our trainer.
    """

    name: str
    rows: int
    settings: dict[str, Any]


CASES = {
    "cuda": (
        Case("bf16", 4, {}),
        Case("bf16, checkpointing", 16, {"gradient_checkpointing": True}),
    ),
    "cpu": (
        Case("float32", 2, {}),
        Case("float32, checkpointing", 2, {"gradient_checkpointing": True}),
    ),
}


def memory(setup: Setup, recorder: Recorder) -> str:
    """Two updates of our trainer with rows of one length; the second one's peak is compared."""
    if not setup.on_cuda:
        if sys.platform != "linux":
            raise CheckSkipped("the peak of resident memory is Linux's to tell")
        _give_back_freed_memory()
        # The tiny model's tensors would be lost in what Python and torch need themselves.
        setup = replace(setup, model_shape="28m")
    _peak_of_step(replace(setup, model_shape="tiny"), CASES["cpu"][0])  # what is loaded lazily
    compared: dict[str, dict[str, Any]] = {}
    for case in CASES[setup.device]:
        recorder.doing(f"measuring {case.name}")
        measured, config, args = _peak_of_step(setup, case)
        predicted = predict(config, args, setup.dtype_name, case.rows)
        compared[case.name] = {
            "rows": case.rows,
            "measured": measured,
            "predicted": predicted["total"] - predicted["reserved"],
            "parts": predicted,
        }
        recorder.record(cases=compared, model_shape=setup.model_shape)
    for name, found in compared.items():
        require_close(name, found["predicted"], found["measured"])
    return "; ".join(
        f"{name}: {found['measured'] / GIB:.2f} GiB, predicted {found['predicted'] / GIB:.2f}"
        for name, found in compared.items()
    )


def require_close(name: str, predicted: int, measured: int) -> None:
    """Raise a `CheckFailed` if the prediction is off by more than the tolerance."""
    ratio = predicted / measured
    require(
        abs(ratio - 1) <= TOLERANCE,
        f"{name}: predicted {predicted / GIB:.2f} GiB, measured {measured / GIB:.2f}: "
        f"{ratio:.2f} times, allowed 1 +- {TOLERANCE:g}",
    )


def predict(config: Any, args: Any, dtype: str, rows: int) -> dict[str, int]:
    """Bytes by component for micro-batches of so many rows; `total` besides."""
    parts = training_memory(
        ModelShape.from_config(config),
        TrainingSetup.from_arguments(
            args,
            dtype,
            config._attn_implementation,
            tokens=rows * (PROMPT + COMPLETION - 1),
            longest_row=PROMPT + COMPLETION - 1,
            logit_positions=rows * COMPLETION,
        ),
    )
    return {**asdict(parts), "total": parts.total}


def _peak_of_step(setup: Setup, case: Case) -> tuple[int, Any, Any]:
    """Bytes over what this process had before the model; the model's config; the trainer's."""
    batch = stored_batch(2 * case.rows)
    before = _start_peak(setup)
    side = OurSide(
        setup.model(setup.dtype),
        setup.tokenizer,
        setup.side_settings(batch, autocast=False),
        {"gradient_accumulation_steps": 2, **case.settings},
    )
    if side.trainer.args.gradient_checkpointing:  # as the training loop does
        side.trainer.model.gradient_checkpointing_enable(
            side.trainer.args.gradient_checkpointing_kwargs
        )
    optimizer = side.trainer.create_optimizer()
    for update in range(2):
        if update == 1 and setup.on_cuda:
            torch.cuda.reset_peak_memory_stats()
        side.run(batch)
        optimizer.step()
    peak = _peak(setup) - before
    config, args = side.trainer.model.config, side.trainer.args
    del side, optimizer
    setup.free_memory()
    return peak, config, args


def stored_batch(num_rollouts: int) -> StoredBatch:
    """Rows of one length in groups of two, one of them right: none is left out of the loss."""
    return StoredBatch(
        prompt_ids=[[5] * PROMPT] * num_rollouts,
        completion_ids=[[6] * COMPLETION] * num_rollouts,
        rewards=[float(row % 2) for row in range(num_rollouts)],
        group_size=2,
    )


def _start_peak(setup: Setup) -> int:
    if setup.on_cuda:
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory begins anew
    return _of_status("VmRSS")


def _peak(setup: Setup) -> int:
    return torch.cuda.max_memory_allocated() if setup.on_cuda else _of_status("VmHWM")


def _of_status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _give_back_freed_memory() -> None:
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 65536)
    libc.mallopt(_M_TRIM_THRESHOLD, 0)
