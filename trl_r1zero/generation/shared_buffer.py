"""Memory that a trainer and a vLLM server's workers both see, for weights on their way.

On a GPU it is memory of that GPU, through CUDA's IPC; on a CPU an anonymous file of the kernel
(`memfd`), which has no name and ends with the last process that has it open.

The trainer tells the server how to find its buffer as JSON: numbers, and the bytes of CUDA's
handles in base64. Nothing is unpickled, so whoever reaches the server can give it memory to read
from, but no code to run. The first bytes, sent beside the handle, prove that both see the same.

Weights travel in buckets. A bucket that fits is in the buffer as a whole; a larger one, which is a
single tensor, comes piece by piece: so the buffer may be small, for the trainer keeps it.
"""

import base64
import fcntl
import mmap
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from .weight_transfer import TensorInfo, bytes_of, unpack

# Of 3 GB of weights this makes 23 requests of milliseconds each, and it is little beside a model.
BUFFER_BYTES = 128 * 2**20
_PROOF_BYTES = 16
_MEMFD_NAME = "trl_r1zero_weights"
# Where torch has the counters of memory that processes share: a file of 10,000 of them.
_REF_COUNTER_FILE = re.compile(rb"/torch_\w+")
_REF_COUNTERS = 10_000


class SharedMemoryError(RuntimeError):
    """Memory cannot be shared between the two processes here."""


@dataclass(frozen=True)
class Handle:
    """How another process finds a buffer: its size, the first bytes that it had when this was sent,
    and what the subclasses say, in JSON's types or in bytes."""

    kind: ClassVar[str]
    num_bytes: int
    proof: bytes

    def as_json(self) -> dict[str, Any]:
        """For a request's body; `parse_handle` is the inverse."""
        encoded = {
            name: base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else value
            for name, value in vars(self).items()
        }
        return {"kind": self.kind, **encoded}


@dataclass(frozen=True)
class CPUHandle(Handle):
    """Of memory of this machine: an open file of a process that holds it."""

    kind = "cpu"
    pid: int
    fd: int


@dataclass(frozen=True)
class CUDAHandle(Handle):
    """Of memory of a GPU: what torch's storages give for another process, in their order, but for
    the number of the device, which may be another one there."""

    kind = "cuda"
    memory_handle: bytes
    storage_bytes: int
    offset_bytes: int
    ref_counter_handle: bytes
    ref_counter_offset: int
    event_handle: bytes
    event_sync_required: bool


_KINDS: dict[str, type[Handle]] = {cls.kind: cls for cls in (CPUHandle, CUDAHandle)}


def parse_handle(body: Any) -> Handle:
    """The handle in a request's body; a ValueError if it is none."""
    if not isinstance(body, Mapping) or body.get("kind") not in _KINDS:
        raise ValueError(f"buffer must be an object whose kind is one of {', '.join(_KINDS)}")
    cls = _KINDS[body["kind"]]
    types = {field.name: field.type for field in fields(cls)}
    if set(body) != {"kind", *types}:
        raise ValueError(f"a buffer of kind {body['kind']} has {', '.join(sorted(types))}")
    handle = cls(**{name: _decoded(name, body[name], kind) for name, kind in types.items()})
    if handle.num_bytes < _PROOF_BYTES or len(handle.proof) != _PROOF_BYTES:
        raise ValueError(f"a buffer has at least {_PROOF_BYTES} bytes, which prove that it is one")
    return handle


def _decoded(name: str, value: Any, kind: Any) -> Any:
    if kind is bytes and isinstance(value, str):
        with suppress(ValueError):
            return base64.b64decode(value, validate=True)
    elif type(value) is kind and (kind is bool or value >= 0):
        return value
    words = {int: "a number from 0", bytes: "a text in base64", bool: "true or false"}
    raise ValueError(f"{name} of a buffer must be {words[kind]}, got {value!r:.80}")


# The trainer's side


class SharedBuffer:
    """A buffer of this process that others can open, on a CPU or a CUDA device with its number; a
    SharedMemoryError if there is not so much memory, or it cannot be shared."""

    def __init__(self, device: torch.device, num_bytes: int = BUFFER_BYTES) -> None:
        self.device = device
        self._fd: int | None = None
        if device.type == "cuda":
            self._data = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        else:
            self._fd = _anonymous_file(num_bytes)
            self._data = _mapped(self._fd, num_bytes)

    def handle(self) -> Handle:
        """For one process to open: each wants one of its own."""
        proof = secrets.token_bytes(_PROOF_BYTES)
        self._put([torch.frombuffer(bytearray(proof), dtype=torch.uint8)])
        if self._fd is not None:
            return CPUHandle(len(self._data), proof, os.getpid(), self._fd)
        try:
            _, *shared = self._data.untyped_storage()._share_cuda_()
        except RuntimeError as error:
            raise SharedMemoryError(f"CUDA does not share memory here: {error}") from error
        return CUDAHandle(len(self._data), proof, *shared)

    def fill(self, tensors: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
        """Lay the bytes of a bucket side by side into the buffer, as much at a time as it holds.

        Yields where in the bucket the piece begins that is in the buffer now, and its bytes. The
        next one is put there once the receiver has taken this one.
        """
        room, num_bytes = len(self._data), sum(tensor.nbytes for tensor in tensors)
        if num_bytes <= room:
            self._put(bytes_of(tensor) for tensor in tensors)
            yield 0, num_bytes
            return
        (data,) = (bytes_of(tensor) for tensor in tensors)
        for start in range(0, num_bytes, room):
            piece = data[start : start + room]
            self._put([piece])
            yield start, len(piece)

    def close(self) -> None:
        """Let it go; who has it open keeps it."""
        self._data = torch.empty(0, dtype=torch.uint8)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _put(self, pieces: Iterable[Tensor]) -> None:
        """Bytes to the beginning of the buffer; they are there for other processes, too, then."""
        at = 0
        for piece in pieces:
            self._data[at : at + len(piece)].copy_(piece)
            at += len(piece)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


# The side of the server's worker


class BufferReader:
    """A trainer's buffer, opened by a worker on `device`; a SharedMemoryError if it cannot be, or
    is not the memory that the trainer wrote to."""

    def __init__(self, handle: Handle, device: torch.device) -> None:
        if isinstance(handle, CPUHandle):
            self._data = _open_file(handle)
        else:
            assert isinstance(handle, CUDAHandle)
            self._data = _open_cuda(handle, device)
        proof = bytes(self._data[:_PROOF_BYTES].cpu().tolist())
        if proof != handle.proof:
            raise SharedMemoryError("the buffer that was opened is not the trainer's")
        self._device = device
        self._whole: Tensor | None = None  # a bucket of several pieces

    def take(
        self, bucket: Sequence[TensorInfo], start: int, num_bytes: int
    ) -> list[tuple[str, Tensor]]:
        """The named tensors of a bucket, once its last piece is here; copies, on this device.

        The piece in the buffer begins at `start` of the bucket; a ValueError if there is none such.
        """
        total = sum(info.num_bytes for info in bucket)
        if not (0 <= start <= total and 0 <= num_bytes <= min(len(self._data), total - start)):
            raise ValueError(
                f"a piece of {num_bytes} bytes from {start} on is none of a bucket of {total} and "
                f"a buffer of {len(self._data)}"
            )
        piece = self._data[:num_bytes]
        if num_bytes == total:
            return [(name, tensor.to(self._device)) for name, tensor in unpack(piece, bucket)]
        if start == 0:
            self._whole = torch.empty(total, dtype=torch.uint8, device=self._device)
        if self._whole is None or len(self._whole) != total:
            raise ValueError("the first piece of this bucket has not been here")
        self._whole[start : start + num_bytes].copy_(piece)
        if start + num_bytes < total:
            return []
        whole, self._whole = self._whole, None
        return unpack(whole, bucket)


# Edges


def _anonymous_file(num_bytes: int) -> int:
    if not hasattr(os, "memfd_create"):
        raise SharedMemoryError("processes share memory in this way on Linux alone")
    fd = os.memfd_create(_MEMFD_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, num_bytes)  # now, not at the first write, where it would be fatal
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except OSError as error:
        os.close(fd)
        raise SharedMemoryError(f"no {num_bytes} bytes to share: {error}") from error
    return fd


def _open_file(handle: CPUHandle) -> Tensor:
    path = f"/proc/{handle.pid}/fd/{handle.fd}"
    try:
        target = os.readlink(path)
        if target != f"/memfd:{_MEMFD_NAME} (deleted)":  # no file of anybody's else
            raise SharedMemoryError(f"{path} is no buffer for weights")
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise SharedMemoryError(
            f"the buffer cannot be opened ({error}): trainer and server have to be on one machine, "
            "and in one container"
        ) from error
    try:
        if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise SharedMemoryError(f"{path} may shrink while it is read")
        return _mapped(fd, handle.num_bytes)
    finally:
        os.close(fd)


def _mapped(fd: int, num_bytes: int) -> Tensor:
    try:
        return torch.frombuffer(mmap.mmap(fd, num_bytes), dtype=torch.uint8)
    except (OSError, ValueError) as error:  # a ValueError: the file is smaller
        raise SharedMemoryError(f"no {num_bytes} bytes can be mapped: {error}") from error


def _open_cuda(handle: CUDAHandle, device: torch.device) -> Tensor:
    if device.type != "cuda":
        raise SharedMemoryError(f"the buffer is on a GPU, the model on {device.type}")
    if handle.num_bytes > handle.storage_bytes:
        raise SharedMemoryError("the buffer is larger than its memory")
    # Torch counts there, once the memory is let go, whatever it was told.
    if not _REF_COUNTER_FILE.fullmatch(handle.ref_counter_handle) or (
        handle.ref_counter_offset >= _REF_COUNTERS
    ):
        raise SharedMemoryError("the buffer's handle has a reference counter that is not torch's")
    storage_class: Any = torch.UntypedStorage
    try:
        torch.cuda.init()
        index = torch.cuda.current_device() if device.index is None else device.index
        storage = storage_class._new_shared_cuda(index, *astuple(handle)[2:])  # without the proof
    except RuntimeError as error:
        raise SharedMemoryError(f"CUDA does not open the trainer's memory: {error}") from error
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)[: handle.num_bytes]
