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
from typing import Any, Protocol

import torch
import torch.distributed as dist

from .vllm_client import VLLMServerEngine
from .vllm_server import VLLMServerError
from .weight_sync import (
    NamedTensors,
    ServerWeightSync,
    StuckTransferError,
    in_thread,
    update_info,
)
from .weight_transfer import TensorInfo, TrainerRendezvous

# A chunk is filled until it is larger; two are on their way at a time. vLLM's default is 1 GiB,
# much for a server that has been given nine tenths of a small GPU.
BUFFER_BYTES = 256 * 2**20
NUM_BUFFERS = 2

_TENSORS_AHEAD = 4  # gathered, and not taken yet
_POLL_SECONDS = 0.02
_SECONDS_TO_ABORT = 5.0
_SECONDS_TO_END = 5.0

# In NCCL's words: `ncclInvalidUsage` is "invalid usage", and the reason is in its log only.
_SAME_DEVICE = ("invalid usage", "ncclInvalidUsage", "Duplicate GPU")


class Communicator(Protocol):
    """What is asked of NCCL; all of it but `abort` in a thread whose device is the trainer's."""

    def connect(self, store: dist.Store, world_size: int, device_index: int) -> None:
        """Join the server's workers as rank 0; may block until the last one is there."""
        ...

    def broadcast(self, tensors: NamedTensors) -> None:
        """Send `tensors`, on the GPU, to all workers; returns when they have left."""
        ...

    def abort(self) -> None:
        """End what another thread is blocked in, and give up the communicator."""
        ...


class NCCLCommunicator:
    """vLLM's NCCL communicator. Its import costs seconds."""

    def __init__(self) -> None:
        self._group: Any = None

    def connect(self, store: dist.Store, world_size: int, device_index: int) -> None:
        """As `Communicator.connect`.

        Raises:
            RuntimeError: NCCL's error, or vLLM has no NCCL here.
        """
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
        from vllm.distributed.utils import StatelessProcessGroup

        process_group = StatelessProcessGroup(rank=0, world_size=world_size, store=store)
        group = PyNcclCommunicator(process_group, device=device_index)
        if group.disabled:
            raise RuntimeError(
                "vLLM finds no NCCL library, or VLLM_DISABLE_PYNCCL is set; see VLLM_NCCL_SO_PATH"
            )
        self._group = group

    def broadcast(self, tensors: NamedTensors) -> None:
        """As `Communicator.broadcast`."""
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        def take(named: tuple[str, torch.Tensor]) -> torch.Tensor:
            tensor = named[1]
            tensor.record_stream(torch.cuda.current_stream())  # packed on another than made on
            return tensor

        packed_nccl_broadcast_producer(
            iterator=tensors,
            group=self._group,
            src=0,
            post_iter_func=take,
            buffer_size_bytes=BUFFER_BYTES,
            num_buffers=NUM_BUFFERS,
        )

    def abort(self) -> None:
        """As `Communicator.abort`.

        `ncclCommAbort` ends kernels and calls that wait for a peer. A thread that waits for workers
        within `ncclCommInitRank` has no communicator yet: it is left behind, and blocks nothing.
        """
        group, self._group = self._group, None
        if group is None:
            return
        from vllm.distributed.weight_transfer import packed_tensor

        group.disabled = True  # first: its `broadcast` must not touch what is being freed

        def abort() -> None:
            torch.cuda.set_device(group.device)
            group.nccl.ncclCommAbort(group.comm)

        wait([in_thread(abort)], timeout=_SECONDS_TO_ABORT)
        # The streams that vLLM keeps for chunks: should one be stuck, the next transfer has others.
        packed_tensor._get_streams.cache_clear()


class NCCLWeightSync(ServerWeightSync):
    """Weights by packed NCCL broadcast; see `weight_sync.open_weight_sync` for the arguments."""

    def __init__(
        self,
        engine: VLLMServerEngine,
        device: torch.device,
        *,
        port: int | None = None,
        timeout_seconds: float = 300.0,
    ) -> None:
        super().__init__(engine, timeout_seconds)
        self._device_index = device_index(device, torch.cuda.current_device)
        self._communicator: Communicator = NCCLCommunicator()
        meeting = self._meeting(port)

        def connect(while_waiting: Callable[[], None]) -> None:
            # Not before a worker is there: nothing ends the wait for one that never comes.
            meeting.await_worker(while_waiting)
            joining = self._on_device(
                lambda: self._communicator.connect(
                    meeting.store, meeting.world_size, self._device_index
                )
            )
            try:
                _watch(joining, while_waiting)
            except BaseException:
                self._communicator.abort()
                raise

        try:
            self._beside("/init_weight_transfer_engine", {"init_info": init_info(meeting)}, connect)
        except VLLMServerError as error:
            reasons = f"{error} {error.__cause__}"  # the server's, and this process's own
            if any(words in reasons for words in _SAME_DEVICE):
                raise VLLMServerError(
                    f"{error}\n{_same_device_hint(self._device_index)}"
                ) from error
            raise

    def close(self) -> None:
        """As `WeightSync.close`."""
        self._communicator.abort()

    def _send(self, infos: Sequence[TensorInfo], tensors: NamedTensors) -> None:
        self._beside(
            "/update_weights",
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
            while (named := gathered.get()) is not None:
                if given_up.is_set():  # an end would have it send what it has
                    raise RuntimeError("the transfer was given up")
                yield named

        sending = self._on_device(lambda: self._communicator.broadcast(taken()))

        def put(item: Any) -> None:
            while True:
                if sending.done():
                    sending.result()
                    raise RuntimeError("the broadcast ended before the last tensor")
                while_waiting()
                try:
                    return gathered.put(item, timeout=_POLL_SECONDS)
                except queue.Full:
                    pass

        try:
            for info in infos:
                name, tensor = next(tensors)
                # Another name, dtype or shape than the server was told is read as garbage there.
                assert TensorInfo.of(name, tensor) == info, (info, TensorInfo.of(name, tensor))
                # What gathered and rounded it runs on this thread's stream.
                torch.cuda.current_stream(self._device_index).synchronize()
                put((name, tensor))
            put(None)
            _watch(sending, while_waiting)
        except BaseException as error:
            given_up.set()
            self._communicator.abort()
            _wake(gathered)
            if not wait([sending], timeout=_SECONDS_TO_END).done and isinstance(error, Exception):
                raise StuckTransferError(
                    f"{error}\nThe broadcast by NCCL could not be ended either: the trainer's GPU "
                    "is stuck in it"
                ) from error
            raise

    def _on_device(self, work: Callable[[], None]) -> "Future[None]":
        def run() -> None:
            torch.cuda.set_device(self._device_index)  # a thread has a current device of its own
            work()

        return in_thread(run)


def device_index(device: torch.device, current: Callable[[], int]) -> int:
    """The number of a CUDA device; without one, as accelerate gives it to a single process, the
    current one's.

    Args:
        device: The trainer's device.
        current: `torch.cuda.current_device`; asked in the trainer's own thread.
    """
    return current() if device.index is None else device.index


def init_info(meeting: TrainerRendezvous) -> dict[str, Any]:
    """What vLLM's NCCL engine is told of the meeting, and of how weights are packed."""
    return {
        "master_address": meeting.address,
        "master_port": meeting.port,
        "rank_offset": 1,
        "world_size": meeting.world_size,
        "packed": True,
        "packed_buffer_size_bytes": BUFFER_BYTES,
        "packed_num_buffers": NUM_BUFFERS,
    }


def _watch(work: "Future[None]", while_waiting: Callable[[], None]) -> None:
    """Wait for `work`, which may be blocked in NCCL, unless `while_waiting` raises."""
    while not wait([work], timeout=_POLL_SECONDS).done:
        while_waiting()
    work.result()


def _wake(gathered: "queue.Queue[Any]") -> None:
    """Whoever takes from it finds that the transfer was given up."""
    with contextlib.suppress(queue.Empty):
        while True:
            gathered.get_nowait()
    gathered.put(())


def _same_device_hint(index: int) -> str:
    return (
        f"NCCL refuses two processes on one GPU; is the server on the trainer's, {index}? Start it "
        "with `--weight_transfer ipc` (or gloo), or on another one (--devices)"
    )
