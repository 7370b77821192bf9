"""What the processes of a run do together."""

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def is_main_process() -> bool:
    """Whether this is the only process of a run, or the first."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return bool(distributed.get_rank() == 0)
    return os.environ.get("RANK", "0") == "0"  # as launchers set it


def from_main(value: T) -> T:
    """The value that the main process has, on every process; a collective call."""
    import torch.distributed

    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def from_main_process(make: Callable[[], T]) -> T:
    """What `make` returns, or raises, on the main process, on every process; a collective call."""
    import torch.distributed

    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return make()
    outcome: tuple[Any, Exception | None] = None, None
    if torch.distributed.get_rank() == 0:
        try:
            outcome = make(), None
        except Exception as error:
            outcome = None, error
    made, failure = from_main(outcome)
    if failure is not None:
        raise failure
    return made


def any_process(flag: bool) -> bool:
    """Whether a flag is true on any process; a collective call."""
    import torch.distributed

    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return flag
    flags: list[bool] = [False] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(flags, flag)
    return any(flags)
