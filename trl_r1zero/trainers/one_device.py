"""A training process computes on one device: its own, of those that it sees.

The others may be a server's, a reference model's, or other processes'. transformers'
`nn.DataParallel` and TRL's `device_map="auto"` would take them; and where the device cannot be
used, transformers would silently use the CPU.
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
    """Set `use_cpu` where there is no accelerator; call it before `__post_init__` of transformers.

    Without this, processes that torchrun starts on a machine without accelerator do not find one
    another, and each one trains alone. A ValueError if there is no GPU for this process.
    """
    asked = args.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
    args.cpu_was_asked_for = asked  # type: ignore[attr-defined]
    args.use_cpu = asked or not torch.accelerator.is_available()
    rank, visible = int(os.environ.get("LOCAL_RANK", "0")), visible_here()
    if not args.use_cpu and torch.cuda.is_available() and rank >= len(visible):
        raise ValueError(
            f"this machine's training process number {rank} wants GPU {rank}, but "
            f"{visible.in_words()}, counted from 0; start fewer processes "
            "(`accelerate launch --num_processes`), or show the run more GPUs"
        )


def use_one_gpu(args: "TrainingArguments") -> None:
    """Let a process use one GPU of those that it sees; call it after `__post_init__`.

    transformers wraps the model of a single process in `nn.DataParallel` over all visible GPUs,
    which works neither with TRL's fused forward nor with a server on one of them. The number is set
    when the cached `_setup_devices` is first computed, so ours has to come later.
    """
    _ = args._setup_devices
    args._n_gpu = min(args._n_gpu, 1)  # 0 on a CPU


def check_device(args: "TrainingArguments") -> None:
    """Warn, or raise (see `check_accelerator`), where a run would be on the CPU unasked.

    Not checked with the settings: a recipe may be read on another machine than it runs on.
    """
    if not args.use_cpu or getattr(args, "cpu_was_asked_for", True):
        return
    warning = check_accelerator(machine_facts(), use_cpu=False)
    if warning is not None:
        warnings.warn(warning, stacklevel=2)


@contextmanager
def loaded_onto_one_device(args: Any, model: Any) -> Iterator[None]:
    """Within it, TRL loads policy and reference whole, for transformers to move to the device.

    `model_init_kwargs` of `args` are changed meanwhile. A ValueError if they have a `device_map`,
    or if the model that the trainer was given is spread over devices.
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
