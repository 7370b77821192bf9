"""What the processes of a run do together."""

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def _group() -> Any:
    """`torch.distributed`, where this process has joined others; else None."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    joined = distributed and distributed.is_available() and distributed.is_initialized()
    return distributed if joined else None


def is_main_process() -> bool:
    """Whether this is the only process of a run, or the first."""
    group = _group()
    rank = os.environ.get("RANK", "0") if group is None else group.get_rank()  # as launchers set it
    return int(rank) == 0


def from_main(value: T) -> T:
    """The value that the main process has, on every process; a collective call."""
    values = [value]
    if (group := _group()) is not None:
        group.broadcast_object_list(values, src=0)
    return values[0]


def from_main_process(make: Callable[[], T]) -> T:
    """What `make` returns, or raises, on the main process, on every process; a collective call."""
    if _group() is None:
        return make()
    outcome: tuple[Any, Exception | None] = None, None
    if is_main_process():
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
    if (group := _group()) is None:
        return flag
    flags: list[bool] = [False] * group.get_world_size()
    group.all_gather_object(flags, flag)
    return any(flags)
