"""Whether two processes can share memory of a GPU here, for weights on their way.

That is known from the machine before it is tried. Where nothing speaks against it and it fails all
the same, the weights go through the host's memory instead (`generation.weight_sync`).
"""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass

# Newer name first: torch takes either.
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@dataclass(frozen=True)
class PlatformFacts:
    """What sharing memory of a GPU depends on.

    Attributes:
        system: Such as `Linux`.
        release: Of the kernel, such as `6.8.0-57-generic`.
        allocator: The settings of torch's allocator on GPUs, such as `expandable_segments:True`.
        one_machine: Whether both processes are on one.
    """

    system: str = "Linux"
    release: str = ""
    allocator: str = ""
    one_machine: bool = True


def ipc_obstacle(facts: PlatformFacts) -> str | None:
    """Why two processes cannot share memory of a GPU, for a message; None if nothing is known."""
    if not facts.one_machine:
        return "trainer and server are on different machines"
    if facts.system != "Linux":
        return f"CUDA shares no memory between processes on {facts.system}"
    if "microsoft" in facts.release.lower():
        return "CUDA shares no memory between processes in WSL"
    settings = (setting.strip().lower() for setting in facts.allocator.split(","))
    if "expandable_segments:true" in ("".join(setting.split()) for setting in settings):
        return "PYTORCH_CUDA_ALLOC_CONF has expandable_segments:True, whose memory is not shared"
    return None


def ipc_works(facts: PlatformFacts) -> bool:
    """Whether nothing speaks against sharing memory of a GPU."""
    return ipc_obstacle(facts) is None


def platform_here(environment: Mapping[str, str] = os.environ) -> PlatformFacts:
    """The facts of this machine, for processes that are both on it."""
    allocator = next((environment[v] for v in ALLOCATOR_VARIABLES if environment.get(v)), "")
    return PlatformFacts(platform.system(), platform.release(), allocator)
