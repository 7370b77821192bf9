"""Weights by NCCL, from a trainer's GPU to a server on other ones, with vLLM's own engine there.

The trainer is rank 0 of a communicator of its own, the server's workers are the ranks behind it.
Weights are packed into chunks by vLLM's code, so that both sides cut them alike.

This thread gathers the weights, as that takes all of the trainer's processes; another one sends
them, as a broadcast whose receiver is gone cannot be interrupted: the communicator is aborted then.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any

import torch

from .vllm_client import VLLMServerEngine
from .vllm_compat import INIT_TRANSFER, NCCL_PACKING, UPDATE_WEIGHTS, NCCLCommunicator
from .vllm_server import VLLMServerError
from .weight_sync import StuckTransferError, WeightSync, in_thread, numbered, update_info
from .weight_transfer import NamedTensors, TensorInfo

_TENSORS_AHEAD = 4  # gathered, and not taken yet
_POLL_SECONDS = 0.02
_SECONDS_TO_END = 5.0

# In NCCL's words: `ncclInvalidUsage` is "invalid usage", and the reason is in its log only.
_SAME_DEVICE = ("invalid usage", "ncclInvalidUsage", "Duplicate GPU")


class NCCLWeightSync(WeightSync):
    """Weights by packed NCCL broadcast; see `open_weight_sync` for the arguments."""

    def __init__(
        self,
        engine: VLLMServerEngine,
        device: torch.device,
        *,
        port: int | None = None,
        timeout_seconds: float = 300.0,
    ) -> None:
        super().__init__(engine, timeout_seconds)
        self._device = numbered(device)
        self._communicator = NCCLCommunicator()
        meeting = self._meeting(port)

        def connect(while_waiting: Callable[[], None]) -> None:
            # Not before a worker is there: nothing ends the wait for one that never comes.
            meeting.await_worker(while_waiting)
            arguments = (meeting.store, meeting.world_size, self._device.index)
            joining = self._on_device(lambda: self._communicator.connect(*arguments))
            try:
                _watch(joining, while_waiting)
            except BaseException:
                self._communicator.abort()
                raise

        try:
            self._beside(INIT_TRANSFER, {"init_info": meeting.init_info | NCCL_PACKING}, connect)
        except VLLMServerError as error:
            reasons = f"{error} {error.__cause__}"  # the server's, and this process's own
            if not any(words in reasons for words in _SAME_DEVICE):
                raise
            raise VLLMServerError(
                f"{error}\nNCCL refuses two processes on one GPU; is the server on the trainer's, "
                f"{self._device.index}? Start it with `--weight_transfer ipc` (or gloo), or on "
                "another one (--devices)"
            ) from error

    def close(self) -> None:
        """As `WeightSync.close`."""
        self._communicator.abort()

    def _send(self, infos: Sequence[TensorInfo], tensors: NamedTensors) -> None:
        self._beside(
            UPDATE_WEIGHTS,
            {"update_info": update_info(infos)},
            lambda while_waiting: self._broadcast(infos, tensors, while_waiting),
        )

    def _broadcast(
        self,
        infos: Sequence[TensorInfo],
        tensors: NamedTensors,
        while_waiting: Callable[[], None],
    ) -> None:
        gathered: queue.Queue[Any] = queue.Queue(maxsize=_TENSORS_AHEAD)
        given_up = threading.Event()

        def taken() -> NamedTensors:
            while True:
                named: Any = ()
                with contextlib.suppress(queue.Empty):
                    named = gathered.get(timeout=_POLL_SECONDS)
                if given_up.is_set():  # an end would have it send what it has
                    raise RuntimeError("the transfer was given up")
                if named is None:
                    return
                if named:
                    yield named

        sending = self._on_device(lambda: self._communicator.broadcast(taken()))

        def put(item: Any) -> None:
            while True:
                if sending.done():
                    sending.result()
                    raise RuntimeError("the broadcast ended before the last tensor")
                while_waiting()
                with contextlib.suppress(queue.Full):
                    return gathered.put(item, timeout=_POLL_SECONDS)

        try:
            for info in infos:
                name, tensor = next(tensors)
                # Another name, dtype or shape than the server was told is read as garbage there.
                assert TensorInfo.of(name, tensor) == info, (info, TensorInfo.of(name, tensor))
                # What gathered and rounded it runs on this thread's stream.
                torch.cuda.current_stream(self._device.index).synchronize()
                put((name, tensor))
            put(None)
            _watch(sending, while_waiting)
        except BaseException as error:
            given_up.set()
            self._communicator.abort()
            if not wait([sending], timeout=_SECONDS_TO_END).done and isinstance(error, Exception):
                raise StuckTransferError(
                    f"{error}\nThe broadcast by NCCL could not be ended either: the trainer's GPU "
                    "is stuck in it"
                ) from error
            raise

    def _on_device(self, work: Callable[[], None]) -> "Future[None]":
        def run() -> None:
            torch.cuda.set_device(self._device)  # a thread has a current device of its own
            work()

        return in_thread(run)


def _watch(work: "Future[None]", while_waiting: Callable[[], None]) -> None:
    """Wait for `work`, which may be blocked in NCCL, unless `while_waiting` raises."""
    while not wait([work], timeout=_POLL_SECONDS).done:
        while_waiting()
    work.result()
