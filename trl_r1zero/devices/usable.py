"""Whether a run may use the CPU where nobody said so: a GPU that cannot be used is no such case."""

import re

from .facts import MachineFacts
from .visible import VARIABLE

# NVIDIA's least Linux driver for each major version of CUDA (the toolkit's release notes).
LEAST_DRIVERS = {12: 525, 13: 580}


class UnusableGPUError(RuntimeError):
    """There is a GPU, or one was asked for, and torch cannot use it."""


def check_accelerator(
    facts: MachineFacts, use_cpu: bool, setting: str = "use_cpu: true"
) -> str | None:
    """Decide what a run without a usable accelerator means.

    Args:
        facts: Of this machine.
        use_cpu: Whether the CPU was asked for.
        setting: How to ask for it, for the messages.

    Returns:
        What to warn of: torch is built without CUDA on a machine with an NVIDIA GPU. None if there
        is an accelerator, the CPU was asked for, or the machine has no GPU.

    Raises:
        UnusableGPUError: torch is built for CUDA and finds no device, though the machine has one,
            or CUDA_VISIBLE_DEVICES names one.
    """
    if use_cpu or facts.devices or facts.other_accelerator is not None:
        return None
    named = _names_a_device(facts.visible.variable)
    if facts.torch_cuda is None:
        if not facts.has_nvidia_device:
            return None
        return (
            "this machine has an NVIDIA GPU, but torch is built for CPUs, so the run is on the "
            f"CPU. For the GPU install torch's build for CUDA; {setting} says that the CPU is meant"
        )
    if not facts.has_nvidia_device and not named:
        return None
    cause = _cause(facts, named)
    raise UnusableGPUError(
        f"torch is built for CUDA {facts.torch_cuda}, but finds no GPU that it can use: {cause}. "
        f"To use the CPU on purpose, set {setting}"
    )


def _cause(facts: MachineFacts, named: bool) -> str:
    variable = facts.visible.variable
    if variable is not None and not named:
        return f"{VARIABLE} is {variable!r}, which hides them all; remove it, or name one"
    if not facts.has_nvidia_device:
        return (
            f"{VARIABLE} is {variable!r}, but this machine has none (a container wants to be given "
            "them, such as `docker run --gpus all`)"
        )
    least = least_driver(facts.torch_cuda)
    wants = "" if least is None else f"; CUDA {facts.torch_cuda} wants {least} or newer"
    if facts.driver is None:
        return f"there is a GPU, but no NVIDIA driver that answers{wants}"
    if least is not None and int(facts.driver.split(".")[0]) < least:
        return f"the NVIDIA driver is {facts.driver}{wants}; update it, or install an older torch"
    asked = "" if variable is None else f", and {VARIABLE} is {variable!r}: is that device there"
    return f"the NVIDIA driver is {facts.driver}{wants}{asked}? `nvidia-smi` may say more"


def least_driver(cuda: str | None) -> int | None:
    """The least major version of NVIDIA's driver for a CUDA version; None if not known."""
    match = re.match(r"\d+", cuda or "")
    return None if match is None else LEAST_DRIVERS.get(int(match[0]))


def _names_a_device(variable: str | None) -> bool:
    first = (variable or "").split(",")[0].strip()
    return first not in ("", "-1", "NoDevFiles", "none", "void")
