"""Seconds spent in the parts of a step, and the memory of a GPU."""

import threading
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


class ServerClock:
    """How long a server had no request, and how long its trainer waited for completions."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = 0
        self._idle = self._waited = 0.0
        self._began = self._free_since = time.perf_counter()

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request, in any thread."""
        with self._lock:
            self._idle += self.free_seconds(self._began)
            self._requests += 1
        try:
            yield
        finally:
            with self._lock:
                self._requests -= 1
                self._free_since = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - begun

    def free_seconds(self, since: float = 0.0) -> float:
        """How long the server has been free, as far as that was after `since`."""
        return 0.0 if self._requests else time.perf_counter() - max(self._free_since, since)

    def idle_shares(self) -> dict[str, float]:
        """`trainer_idle_share` and `server_idle_share` of the time since the last call."""
        with self._lock:
            seconds = max(time.perf_counter() - self._began, 1e-9)
            idle = self._idle + self.free_seconds(self._began)
            shares = {"trainer": self._waited / seconds, "server": idle / seconds}
            self._idle = self._waited = 0.0
            self._began = time.perf_counter()
        return {f"{name}_idle_share": min(share, 1.0) for name, share in shares.items()}
