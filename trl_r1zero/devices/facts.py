"""What is known of this machine's GPUs, asked of torch and the driver or assumed from text, and
whether a run may use the CPU unasked: not where there is a GPU that torch cannot use."""

import os
import platform
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .visible import VARIABLE, VisibleDevices, visible_devices

GB, GIB = 10**9, 2**30
_ASSUMED = re.compile(r"(?:(\d+)\s*x\s*)?(\d+(?:\.\d+)?)\s*(GB|GiB)", re.IGNORECASE)
_DRIVER = re.compile(r"\b\d{3,}\.\d+(?:\.\d+)*\b")
_SMI_SECONDS = 20
# NVIDIA's oldest Linux driver for each major version of CUDA (the toolkit's release notes).
_OLDEST_DRIVERS = {12: 525, 13: 580}


@dataclass(frozen=True)
class DeviceFacts:
    """One GPU: its memory as CUDA reports it, and its name (empty if assumed)."""

    total_bytes: int
    name: str = ""


@dataclass(frozen=True)
class MachineFacts:
    """The GPUs that this run sees, in CUDA's order, and what torch and the driver are."""

    devices: tuple[DeviceFacts, ...]
    visible: VisibleDevices
    torch_cuda: str | None = None  # the version that torch is built for, such as 13.0
    driver: str | None = None  # its version, such as 580.65.06
    has_nvidia_device: bool = False  # whether or not torch can use it
    other_accelerator: str | None = None  # such as mps, where torch has one that is not CUDA
    assumed: bool = False  # the user described it

    @classmethod
    def assume(cls, text: str) -> "MachineFacts":
        """A machine described as `cpu`, `24GB` or `2x80GB`; a ValueError for other text.

        GB are 10**9 bytes, GiB 2**30. A card that is sold as "80 GB" has about 80 GiB less what the
        driver takes: 80GB is the careful reading.
        """
        if text.strip().lower() == "cpu":
            return cls((), VisibleDevices(()), assumed=True)
        match = _ASSUMED.fullmatch(text.strip())
        number, size, unit = match.groups() if match else ("0", "0", "GB")
        count = int(number or 1)
        total_bytes = int(float(size) * (GIB if unit.lower() == "gib" else GB))
        if count < 1 or total_bytes < 1:
            raise ValueError(
                f"a machine is cpu, 24GB or 2x80GB (GB or GiB, all GPUs alike), got {text!r}"
            )
        seen = (DeviceFacts(total_bytes),) * count, visible_devices({}, count)
        return cls(*seen, "assumed", has_nvidia_device=True, assumed=True)

    def total_bytes(self, numbers: tuple[int, ...]) -> int:
        """Memory of the smallest of these devices."""
        return min(self.devices[number].total_bytes for number in numbers)

    def in_words(self) -> str:
        """Such as `2 x NVIDIA H100 80GB HBM3 (79.2 GiB)`."""
        kinds = Counter(f"{d.name or 'GPU'} ({d.total_bytes / GIB:.1f} GiB)" for d in self.devices)
        return ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "no GPU"


def machine_facts(environment: Mapping[str, str] = os.environ) -> MachineFacts:
    """Ask torch and the driver."""
    import torch

    count = _count_devices()
    found = [torch.cuda.get_device_properties(number) for number in range(count)]
    other = None if count else torch.accelerator.current_accelerator(check_available=True)
    return MachineFacts(
        tuple(DeviceFacts(int(one.total_memory), str(one.name)) for one in found),
        visible_devices(environment, count),
        torch_cuda=torch.version.cuda,
        driver=_driver_version(),
        has_nvidia_device=bool(count) or _has_nvidia_device(),
        other_accelerator=None if other is None else other.type,
    )


def ipc_works(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether CUDA can share memory between processes on this machine, as far as is known before.

    It can on Linux, but not in WSL, and not memory of torch's expandable segments.
    """
    if platform.system() != "Linux" or "microsoft" in platform.release().lower():
        return False
    # torch reads the newer name first.
    variables = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    allocator = next((environment[name] for name in variables if environment.get(name)), "")
    return "expandable_segments:true" not in "".join(allocator.lower().split()).split(",")


def visible_here() -> VisibleDevices:
    """The devices that this process sees."""
    return visible_devices(os.environ, _count_devices())


def _count_devices() -> int:
    import torch

    # device_count() may come from NVML, which also counts what this torch cannot use.
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _has_nvidia_device() -> bool:
    """Whether the kernel knows an NVIDIA GPU, or (as in WSL) `nvidia-smi` does."""
    if any(Path("/dev").glob("nvidia[0-9]*")) or any(Path("/proc/driver/nvidia/gpus").glob("*")):
        return True
    return "GPU " in _nvidia_smi("--list-gpus")


def _driver_version() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        text = _nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader")
    match = _DRIVER.search(text)
    return match and match[0]


def _nvidia_smi(*arguments: str) -> str:
    """Its output; nothing where it is missing, fails or hangs."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=_SMI_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


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
    oldest = _OLDEST_DRIVERS.get(int(cuda.split(".", maxsplit=1)[0]))
    wants = "" if oldest is None else f"; CUDA {cuda} wants {oldest} or newer"
    if driver is None:
        return f"there is a GPU, but no NVIDIA driver that answers{wants}"
    if oldest is not None and int(driver.split(".")[0]) < oldest:
        return f"the NVIDIA driver is {driver}{wants}; update it, or install an older torch"
    asked = "" if variable is None else f", and {VARIABLE} is {variable!r}: is that device there"
    return f"the NVIDIA driver is {driver}{wants}{asked}? `nvidia-smi` may say more"
