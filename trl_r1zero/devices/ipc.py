"""Whether two processes can share memory of a GPU here, for the transfer of weights.

That is known from the machine before it is tried. Where it should work and fails all the same, the
weights go through the host's memory instead (`generation.ipc_sync`).
"""

import os
import platform
from collections.abc import Mapping


def ipc_works(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether CUDA can share memory between two processes that are both on this machine.

    It can on Linux, but not in WSL, and not memory of torch's expandable segments, which either of
    two variables of the environment turns on.
    """
    if platform.system() != "Linux" or "microsoft" in platform.release().lower():
        return False
    # torch reads the newer name first.
    variables = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    allocator = next((environment[name] for name in variables if environment.get(name)), "")
    settings = "".join(allocator.lower().split()).split(",")
    return "expandable_segments:true" not in settings
