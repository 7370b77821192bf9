"""Seconds spent in the parts of a step, and the memory of a GPU."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Parts of the generation.
PARTS_OF_GENERATION = ("weight_sync", "rollout_wait", "server_wake")


class StepTimer:
    """Adds up the seconds of named parts until they are collected.

    On a CUDA device a part is measured by events on its stream, which costs no synchronisation
    until `collect`; elsewhere by the clock.
    """

    def __init__(self, device: "torch.device") -> None:
        self._on_cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        if self._on_cuda:
            import torch

            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
        else:
            begun = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - begun

    def collect(self) -> dict[str, float]:
        """Seconds of each part since the last call."""
        if self._events:
            import torch

            torch.cuda.synchronize()
            for name, start, end in self._events:
                self._seconds[name] += start.elapsed_time(end) / 1000
            self._events.clear()
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds


def peak_gpu_memory(device: "torch.device") -> dict[str, float]:
    """`gpu_memory_gib`, the most that torch has had allocated on this process's GPU, if any."""
    if device.type != "cuda":
        return {}
    import torch

    return {"gpu_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}
