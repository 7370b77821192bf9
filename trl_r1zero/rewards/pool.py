"""Worker processes for rewards that may hang, crash or eat memory: one bad row costs that row,
never the run.

The workers are started once and each grades one row at a time. The parent holds the clock and the
limits: a worker that misses its deadline is killed and replaced, one that dies is replaced, and
its row is reported as failed, counted and logged. The memory limit is the kernel's (RLIMIT_AS),
set by the parent. Rows and results travel as JSON, so nothing that a worker sends can be more than
data.

    with RewardPool(my_reward, workers=4, deadline_s=5.0) as pool:
        results = pool.map([(response, truth), ...])  # in the order of the rows
        results[0].value, results[0].failure
"""

import contextlib
import errno
import json
import logging
import math
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

logger = logging.getLogger(__name__)

_PROGRESS_EVERY_S = 10.0
_STARTUP_S = 120.0
_MOST_TOLD = 5  # failures of a pool
_IN_WORKER = False


def in_worker() -> bool:
    """Whether this process is a worker of a pool, and so already under limits."""
    return _IN_WORKER


@dataclass(frozen=True, slots=True)
class PoolResult:
    """Result of one row: what the function returned, or why there is nothing: `failure` is None or
    one of "timeout", "died", "error"; `detail` says more (an exception, an exit code)."""

    value: Any
    failure: str | None = None
    detail: str = ""


class RewardPool:
    """Pre-started worker processes that call one function under a deadline and a memory limit.

    Args:
        function: called as `function(*row)` in a worker. Rows and results must be JSON data (str,
            numbers, lists, dicts).
        workers: number of processes; by default the number of usable cores less one, at most 8.
        deadline_s: wall-clock seconds for one row. After that the worker is killed and replaced.
        memory_mb: address space that a worker may add to what it has when it is ready. One that
            has no more, or dies, is replaced; if it had graded others, its row is graded anew.
        warm_up: called once in each worker before it is ready, for slow imports; not under the
            deadline of a row.
        start_method: "fork" (default on Linux: any function works, and no script is imported
            anew), "forkserver" or "spawn" (the function must be importable; the main script needs
            the usual `if __name__ == "__main__"`).

    Use it as a context manager, or call `close`. `failures` counts failed rows by kind over the
    life of the pool.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        workers: int | None = None,
        deadline_s: float = 5.0,
        memory_mb: int = 2048,
        warm_up: Callable[[], None] | None = None,
        start_method: str | None = None,
    ) -> None:
        if (workers is not None and workers < 1) or deadline_s <= 0 or memory_mb <= 0:
            raise ValueError(
                f"got workers {workers}, deadline_s {deadline_s}, memory_mb {memory_mb}; workers "
                "must be at least 1, the other two positive"
            )
        self.function = function
        self.deadline_s = deadline_s
        self.memory_mb = memory_mb
        self.failures: Counter[str] = Counter()
        self._warm_up = warm_up
        self._context = multiprocessing.get_context(
            start_method or ("fork" if sys.platform == "linux" else "spawn")
        )
        self._lock = threading.Lock()
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
        self._size = workers or min(8, max(1, cores - 1))
        self._workers: list[_Worker] = []

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the workers now instead of at the first batch (before a model is loaded, say)."""
        with self._lock:
            self._fill(self._size)

    def close(self) -> None:
        """Stop all workers. The pool can be used again and starts new ones."""
        with self._lock:
            while self._workers:
                self._workers.pop().stop()

    def map(
        self, rows: Sequence[Sequence[Any]], *, progress: Callable[[int, int], None] | None = None
    ) -> list[PoolResult]:
        """Call the function on every row; results in the order of the rows.

        `progress(done, total)` is called after every row if given; without it a long batch logs a
        line every ten seconds. A batch of several rows of which every one raised is a broken
        function and not bad luck: RuntimeError.
        """
        with self._lock:
            results = self._map(rows, progress)
        errors = [result.detail for result in results if result.failure == "error"]
        if len(errors) == len(results) > 1:
            raise RuntimeError(
                f"the reward function raised on all {len(results)} rows, the first time: "
                f"{errors[0]}"
            )
        return results

    def _map(
        self, rows: Sequence[Sequence[Any]], progress: Callable[[int, int], None] | None
    ) -> list[PoolResult]:
        results: list[PoolResult | None] = [None] * len(rows)
        # Encoded first, so that a row that is not JSON data fails before anything is under way.
        pending = deque((index, json.dumps(list(row)).encode()) for index, row in enumerate(rows))
        again: deque[tuple[int, bytes]] = deque()  # rows for workers that have graded nothing yet
        self._fill(min(self._size, len(rows)))
        done = 0
        last_report = time.monotonic()
        while done < len(rows):
            for worker in self._workers:
                waiting = again if again and not worker.num_rows else pending
                if worker.row is None and worker.ready and waiting:
                    worker.send(*waiting.popleft(), self.deadline_s)
            for worker in self._wait():
                finished = worker.row
                result = self._collect(worker)
                if result is None or finished is None:
                    continue
                if worker.num_rows > 1 and (result.failure == "died" or _no_memory(result)):
                    again.append((finished, worker.payload))  # what rows before it left may be why
                    continue
                results[finished] = result
                done += 1
                if result.failure:
                    self.failures[result.failure] += 1
                    message = "reward of row %d failed (%s): %s"
                    if (number := self.failures.total()) == _MOST_TOLD:
                        message += "; further ones are counted, and not told"
                    level = logging.WARNING if number <= _MOST_TOLD else logging.DEBUG
                    logger.log(level, message, finished, result.failure, result.detail)
                if progress is not None:
                    progress(done, len(rows))
            if progress is None and time.monotonic() - last_report > _PROGRESS_EVERY_S:
                last_report = time.monotonic()
                message = "graded %d of %d rows, %d failed so far"
                logger.info(message, done, len(rows), self.failures.total())
        return [result for result in results if result is not None]

    def _fill(self, size: int) -> None:
        while len(self._workers) < size:
            others = [worker.connection for worker in self._workers]
            self._workers.append(_Worker(self._context, self.function, self._warm_up, others))

    def _wait(self) -> list["_Worker"]:
        """Workers that have something to say, have died or have missed their deadline."""
        deadline = min(worker.deadline for worker in self._workers)
        timeout = None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())
        handles = [(w.connection, w.process.sentinel) for w in self._workers]
        ready = set(wait([handle for pair in handles for handle in pair], timeout))
        now = time.monotonic()
        return [
            worker
            for worker, pair in zip(self._workers, handles, strict=True)
            if now >= worker.deadline or not ready.isdisjoint(pair)
        ]

    def _collect(self, worker: "_Worker") -> PoolResult | None:
        """Result of the worker's row, None if it has none; a worker that failed is replaced."""
        message = worker.receive()
        if message is not None:
            if not worker.ready:
                worker.became_ready(self.memory_mb)
                return None
            worker.row = None
            worker.deadline = float("inf")
            result = PoolResult(**message)
            if _no_memory(result):  # of a leak, which would cost all rows to come
                self._workers.remove(worker)
                worker.stop()
                self._fill(len(self._workers) + 1)
            return result
        dead = not worker.process.is_alive()
        if not dead and time.monotonic() < worker.deadline:
            return None
        self._workers.remove(worker)
        worker.stop()
        code = worker.process.exitcode
        if not worker.ready:
            detail = f"exit code {code}" if dead else f"not ready after {_STARTUP_S:.0f} s"
            raise RuntimeError(f"a worker of the reward pool could not be started ({detail})")
        self._fill(len(self._workers) + 1)
        if worker.row is None:
            return None
        if dead:
            return PoolResult(None, "died", f"exit code {code}")
        return PoolResult(None, "timeout", f"no result after {self.deadline_s:g} s")


def _no_memory(result: PoolResult) -> bool:
    return result.failure == "error" and result.detail.startswith("MemoryError")


class _Worker:
    """A worker process as its parent sees it."""

    def __init__(
        self,
        context: Any,
        function: Callable[..., Any],
        warm_up: Callable[[], None] | None,
        others: list[Connection],
    ) -> None:
        self.connection, child = context.Pipe()
        # A forked child closes the parent's ends of all pipes, or it would keep siblings alive.
        inherited = [*others, self.connection] if context.get_start_method() == "fork" else []
        self.process = context.Process(
            target=_serve,
            args=(child, function, warm_up, inherited, os.getpid()),
            daemon=True,
            name="reward-worker",
        )
        self.process.start()
        child.close()
        self.row: int | None = None
        self.payload = b""  # of the newest row
        self.num_rows = 0
        self.ready = False
        self.deadline = time.monotonic() + _STARTUP_S

    def became_ready(self, memory_mb: int) -> None:
        self.ready = True
        self.deadline = float("inf")
        if sys.platform == "linux" and self.process.pid is not None:
            # A worker that died meanwhile is found by the next wait.
            with (
                contextlib.suppress(FileNotFoundError, ProcessLookupError),
                open(f"/proc/{self.process.pid}/statm", encoding="ascii") as statm,
            ):
                pages = int(statm.read().split()[0])
                limit = pages * resource.getpagesize() + memory_mb * 2**20
                resource.prlimit(self.process.pid, resource.RLIMIT_AS, (limit, limit))

    def send(self, row: int, payload: bytes, deadline_s: float) -> None:
        self.row, self.payload = row, payload
        self.num_rows += 1
        self.deadline = time.monotonic() + deadline_s
        # To a worker that died while idle; the next wait finds it dead and fails this row.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send_bytes(payload)

    def receive(self) -> dict[str, Any] | None:
        try:
            return json.loads(self.connection.recv_bytes()) if self.connection.poll() else None
        except (EOFError, OSError):
            return None

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _lacks_memory(error: Exception) -> bool:
    """Whether it says so, in the words of Python, numpy, the kernel or torch."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return "can't allocate memory" in str(error)


def _serve(
    connection: Connection,
    function: Callable[..., Any],
    warm_up: Callable[[], None] | None,
    inherited: list[Connection],
    parent: int,
) -> None:
    """Main loop of a worker; it ends when its parent does."""
    global _IN_WORKER  # noqa: PLW0603  (a process is a worker or it is not)
    _IN_WORKER = True
    # Ctrl-C is the parent's business; it stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in inherited:
        other.close()
    if warm_up is not None:
        warm_up()
    connection.send_bytes(b"{}")  # ready
    while True:
        while not connection.poll(5.0):
            if os.getppid() != parent:
                return
        try:
            row = json.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            reply = json.dumps({"value": function(*row)})
        except Exception as error:  # whatever the user's function raises belongs to its row
            kind = "MemoryError" if _lacks_memory(error) else type(error).__name__
            detail = f"{kind}: {error}"[:500]
            reply = json.dumps({"value": None, "failure": "error", "detail": detail})
        connection.send_bytes(reply.encode())
