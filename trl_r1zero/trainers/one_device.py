"""A training process computes on one device: its own, of those that it sees.

The others may be a server's, a reference model's, or other processes'. Three things would take
them: transformers' `nn.DataParallel`, TRL's `device_map="auto"`, and, where the device cannot be
used, silence: the CPU.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import parse_flag_from_env

from trl_r1zero.devices.facts import check_accelerator, machine_facts, visible_here

if TYPE_CHECKING:
    from transformers import TrainingArguments


def settle_use_cpu(args: "TrainingArguments") -> None:
    """Set `use_cpu` where it follows; to be called before `__post_init__` of transformers.

    Without this, processes that torchrun starts on a machine without accelerator do not find one
    another, and each one trains alone.

    Raises:
        ValueError: There is no GPU for this process.
    """
    asked = args.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
    args.cpu_was_asked_for = asked  # type: ignore[attr-defined]
    args.use_cpu = asked or not torch.accelerator.is_available()
    if not args.use_cpu and torch.cuda.is_available():
        _check_local_rank(int(os.environ.get("LOCAL_RANK", "0")))


def _check_local_rank(rank: int) -> None:
    visible = visible_here()
    if rank >= len(visible):
        raise ValueError(
            f"this machine's training process number {rank} wants GPU {rank}, but "
            f"{visible.in_words()}, counted from 0; start fewer processes "
            "(`accelerate launch --num_processes`), or show the run more GPUs"
        )


def use_one_gpu(args: "TrainingArguments") -> None:
    """Let a process use one GPU of those that it sees; to be called after `__post_init__`.

    transformers wraps the model of a lone process in `nn.DataParallel` over all GPUs in sight,
    which neither TRL's fused forward nor a server on one of them can bear. The number is set when
    the cached `_setup_devices` is first computed, so ours has to come after that to last.
    """
    _ = args._setup_devices
    args._n_gpu = min(args._n_gpu, 1)  # 0 on a CPU


def check_device(args: "TrainingArguments") -> None:
    """Warn, or raise, where a run would be on the CPU though nobody asked for that.

    Not a matter of the settings alone: a recipe may be read on another machine than it runs on.

    Raises:
        UnusableGPUError: See `check_accelerator`.
    """
    if not args.use_cpu or getattr(args, "cpu_was_asked_for", True):
        return
    warning = check_accelerator(machine_facts(), use_cpu=False)
    if warning is not None:
        warnings.warn(warning, stacklevel=2)


@contextmanager
def loaded_onto_one_device(args: Any, model: Any) -> Iterator[None]:
    """Within it, TRL loads policy and reference whole, for transformers to move to the device.

    Args:
        args: A config of TRL's, whose `model_init_kwargs` are changed meanwhile.
        model: What the trainer was given: a model, or the path or hub id of one.

    Raises:
        ValueError: `model_init_kwargs` has a `device_map`, or the model is spread over devices.
    """
    given = args.model_init_kwargs
    if (given or {}).get("device_map") is not None:
        raise ValueError(
            f"model_init_kwargs has device_map: {given['device_map']!r}, but a training process "
            "computes on one device; remove it. FSDP or ZeRO-3 (accelerate_configs/) share a model "
            "out over GPUs"
        )
    check_not_spread(model)
    # TRL warns of settings where the model is there already: a reference alone is loaded by them.
    loads_reference = bool(getattr(args, "beta", None)) and not args.use_cpu
    if isinstance(model, str) or loads_reference:
        args.model_init_kwargs = {**(given or {}), "device_map": None}
    try:
        yield
    finally:
        args.model_init_kwargs = given


def check_not_spread(model: Any) -> None:
    """Raise a ValueError if a model lies on several devices."""
    devices = {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(devices) > 1:
        raise ValueError(
            f"the model is spread over {', '.join(sorted(devices))} (device_map), but a training "
            "process computes on one device; load it with device_map=None"
        )
