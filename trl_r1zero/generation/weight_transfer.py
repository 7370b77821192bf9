"""Weights from the trainer to a vLLM server's workers over gloo: the half that both sides share.

For trainers that vLLM's own engines (NCCL) do not serve: rank 0 of a gloo group of its own, no part
of any default group, with the server's workers as the ranks behind it (`vllm_engine`). Tensors
travel in buckets, laid side by side as bytes: a small model is one broadcast, a large one never
needs a second copy of itself. Both sides cut the same buckets from names, dtypes and shapes.
"""

import math
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trl_r1zero.common.network import address_towards

from .connections import is_loopback

BUCKET_BYTES = 64 * 2**20
_READY_KEY = "workers_ready"
_POLL_SECONDS = 0.0005

NamedTensors = Iterator[tuple[str, Tensor]]


@dataclass(frozen=True)
class TensorInfo:
    """What is announced of a tensor: its name in the checkpoint, that of its dtype (`float32`), its
    shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "TensorInfo":
        return cls(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.torch_dtype.itemsize


def cut_into_buckets(
    infos: Sequence[TensorInfo], bucket_bytes: int = BUCKET_BYTES
) -> list[list[TensorInfo]]:
    """Consecutive tensors whose bytes fill a bucket; a larger tensor is a bucket of its own."""
    buckets: list[list[TensorInfo]] = []
    room = 0
    for info in infos:
        if not buckets or info.num_bytes > room:
            buckets.append([])
            room = bucket_bytes
        buckets[-1].append(info)
        room -= info.num_bytes
    return buckets


def fill_buckets(
    infos: Sequence[TensorInfo], tensors: NamedTensors, bucket_bytes: int = BUCKET_BYTES
) -> Iterator[tuple[list[TensorInfo], list[Tensor]]]:
    """Each bucket with its tensors; not one more is taken than `infos` announces."""
    for bucket in cut_into_buckets(infos, bucket_bytes):
        named = list(islice(tensors, len(bucket)))
        assert [name for name, _ in named] == [info.name for info in bucket]
        yield bucket, [tensor for _, tensor in named]


def bytes_of(tensor: Tensor) -> Tensor:
    """A (number of bytes,) uint8 tensor; a view where the tensor is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def pack(tensors: Iterable[Tensor]) -> Tensor:
    """The tensors' bytes side by side, a (number of bytes,) uint8 tensor on the CPU."""
    return torch.cat([bytes_of(tensor).cpu() for tensor in tensors])


def unpack(data: Tensor, bucket: Sequence[TensorInfo]) -> list[tuple[str, Tensor]]:
    """The named tensors of a bucket; copies, as its bytes need not be aligned for every dtype."""
    pieces = data.split([info.num_bytes for info in bucket])
    return [
        (info.name, piece.clone().view(info.torch_dtype).reshape(info.shape))
        for info, piece in zip(bucket, pieces, strict=True)
    ]


class GlooGroup:
    """A gloo process group of a trainer (rank 0) and a server's workers, which meet at `store`.

    `address` is where the store is, reached by the network interface that is used;
    `timeout_seconds` are those of the meeting and of each broadcast.
    """

    def __init__(
        self, store: dist.Store, address: str, rank: int, world_size: int, timeout_seconds: float
    ) -> None:
        gloo: Any = dist.ProcessGroupGloo  # its stubs lack what is used here
        options = gloo._Options()
        options._timeout = timedelta(seconds=timeout_seconds)
        own = "127.0.0.1" if is_loopback(address) else address_towards(address)
        options._devices = [gloo.create_device(hostname=own)]
        self._store = store
        self._group = gloo(dist.PrefixStore("weights", store), rank, world_size, options)

    def broadcast(self, data: Tensor, while_waiting: Callable[[], None] | None = None) -> None:
        """Send a CPU tensor from rank 0 into the other ranks', of the same shape and dtype.

        `while_waiting` is called again and again until it is through; what it raises ends the wait.
        A RuntimeError if a rank is gone, or the timeout is over.
        """
        work = self._group.broadcast([data], dist.BroadcastOptions())
        while while_waiting is not None and not work.is_completed():
            while_waiting()
            time.sleep(_POLL_SECONDS)
        work.wait()


class TrainerRendezvous:
    """The trainer's side of the meeting with a server's workers.

    The store listens, at `port` or any free one, before the server is told where: on the loopback
    interface unless the server is on another machine.
    """

    def __init__(
        self, server_host: str, num_workers: int, port: int | None, timeout_seconds: float
    ) -> None:
        self.address = "127.0.0.1" if is_loopback(server_host) else address_towards(server_host)
        self.world_size = num_workers + 1
        self.timeout_seconds = timeout_seconds
        listener = socket.socket(socket.AF_INET6 if ":" in self.address else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.address, port or 0))
        listener.listen(self.world_size)
        self.port: int = listener.getsockname()[1]
        self.store = dist.TCPStore(
            self.address,
            self.port,
            self.world_size,
            is_master=True,
            timeout=timedelta(seconds=timeout_seconds),
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        # What the server's workers are told.
        self.init_info: dict[str, Any] = {
            "master_address": self.address,
            "master_port": self.port,
            "rank_offset": 1,
            "world_size": self.world_size,
        }

    def await_worker(self, while_waiting: Callable[[], None]) -> None:
        """Until the first of vLLM's own workers, who leave word when they come, is there."""
        self._await(lambda: self.store.num_keys() > 0, while_waiting)

    def join(self, while_waiting: Callable[[], None]) -> GlooGroup:
        """The gloo group, once all workers are there."""
        self._await(lambda: self.store.add(_READY_KEY, 0) >= self.world_size - 1, while_waiting)
        return GlooGroup(self.store, self.address, 0, self.world_size, self.timeout_seconds)

    def _await(self, arrived: Callable[[], bool], while_waiting: Callable[[], None]) -> None:
        deadline = time.monotonic() + self.timeout_seconds
        while not arrived():
            while_waiting()
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"the workers of the vLLM server did not join the weight-transfer group at "
                    f"{self.address}:{self.port} within {self.timeout_seconds:g} s"
                )
            time.sleep(0.01)


def join_as_worker(
    master_address: str, master_port: int, rank: int, world_size: int, timeout_seconds: float
) -> GlooGroup:
    """The server worker's side of the meeting."""
    store = dist.TCPStore(
        master_address,
        master_port,
        world_size,
        is_master=False,
        timeout=timedelta(seconds=timeout_seconds),
        wait_for_workers=False,
    )
    store.add(_READY_KEY, 1)
    return GlooGroup(store, master_address, rank, world_size, timeout_seconds)


def send_weights(
    group: GlooGroup,
    infos: Sequence[TensorInfo],
    tensors: NamedTensors,
    while_waiting: Callable[[], None],
) -> None:
    """Rank 0's half: broadcast `tensors`, which are those announced in `infos`, in their order."""
    for _, bucket in fill_buckets(infos, tensors):
        group.broadcast(pack(bucket), while_waiting)


def receive_weights(
    group: GlooGroup, infos: Sequence[TensorInfo]
) -> Iterator[list[tuple[str, Tensor]]]:
    """A worker's half: the named tensors, bucket by bucket."""
    for bucket in cut_into_buckets(infos):
        data = torch.empty(sum(info.num_bytes for info in bucket), dtype=torch.uint8)
        group.broadcast(data)
        yield unpack(data, bucket)
