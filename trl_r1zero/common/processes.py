"""What the processes of a run do together."""

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["from_main_process"]

T = TypeVar("T")


def from_main_process(make: Callable[[], T]) -> T:
    """What `make` returns, or raises, on the main process, on every process; a collective call."""
    import torch.distributed

    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return make()
    outcome: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            outcome[0] = make()
        except Exception as error:
            outcome[1] = error
    torch.distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
