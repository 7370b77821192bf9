"""Whether a run may use the CPU unasked: not where there is a GPU that torch cannot use."""

import re

from .facts import MachineFacts
from .visible import VARIABLE

# NVIDIA's oldest Linux driver for each major version of CUDA (the toolkit's release notes).
OLDEST_DRIVERS = {12: 525, 13: 580}


class UnusableGPUError(RuntimeError):
    """There is a GPU, or one was asked for, and torch cannot use it."""


def check_accelerator(
    facts: MachineFacts, use_cpu: bool, setting: str = "use_cpu: true"
) -> str | None:
    """Decide what a run without a usable accelerator means; `setting` asks for the CPU.

    Returns:
        A warning: torch is built without CUDA on a machine with an NVIDIA GPU. None if there is an
        accelerator, the CPU was asked for, or the machine has no GPU.

    Raises:
        UnusableGPUError: torch is built for CUDA and finds no device, though the machine has one,
            or CUDA_VISIBLE_DEVICES names one.
    """
    variable = facts.visible.variable
    first = (variable or "").split(",")[0].strip()
    names_a_device = first not in ("", "-1", "NoDevFiles", "none", "void")
    if use_cpu or facts.devices or facts.other_accelerator is not None:
        return None
    if facts.torch_cuda is None and facts.has_nvidia_device:
        return (
            "this machine has an NVIDIA GPU, but torch is built for CPUs, so the run is on the "
            f"CPU. For the GPU install torch's build for CUDA; {setting} says that the CPU is meant"
        )
    if facts.torch_cuda is None or not (facts.has_nvidia_device or names_a_device):
        return None
    if variable is not None and not names_a_device:
        cause = f"{VARIABLE} is {variable!r}, which hides them all; remove it, or name one"
    elif not facts.has_nvidia_device:
        cause = (
            f"{VARIABLE} is {variable!r}, but this machine has none (a container wants to be given "
            "them, such as `docker run --gpus all`)"
        )
    else:
        cause = _driver_cause(facts.torch_cuda, facts.driver, variable)
    raise UnusableGPUError(
        f"torch is built for CUDA {facts.torch_cuda}, but finds no GPU that it can use: {cause}. "
        f"To use the CPU on purpose, set {setting}"
    )


def _driver_cause(cuda: str, driver: str | None, variable: str | None) -> str:
    oldest = oldest_driver(cuda)
    wants = "" if oldest is None else f"; CUDA {cuda} wants {oldest} or newer"
    if driver is None:
        return f"there is a GPU, but no NVIDIA driver that answers{wants}"
    if oldest is not None and int(driver.split(".")[0]) < oldest:
        return f"the NVIDIA driver is {driver}{wants}; update it, or install an older torch"
    asked = "" if variable is None else f", and {VARIABLE} is {variable!r}: is that device there"
    return f"the NVIDIA driver is {driver}{wants}{asked}? `nvidia-smi` may say more"


def oldest_driver(cuda: str | None) -> int | None:
    """The oldest major version of NVIDIA's driver for a CUDA version; None if not known."""
    match = re.match(r"\d+", cuda or "")
    return OLDEST_DRIVERS.get(int(match[0])) if match else None
