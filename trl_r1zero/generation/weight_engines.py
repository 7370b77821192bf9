"""How weights travel to a vLLM server: gloo, IPC or NCCL, as it was started for."""

import logging
from collections.abc import Sequence

import torch

from . import vllm_compat
from .nccl_sync import NCCLWeightSync
from .shared_buffer import BUFFER_BYTES, CUDAHandle, SharedBuffer, SharedMemoryError
from .vllm_client import VLLMRefusal, VLLMServerEngine
from .vllm_server import VLLMServerError
from .weight_sync import WeightSync, numbered, update_info
from .weight_transfer import (
    GlooGroup,
    NamedTensors,
    TensorInfo,
    fill_buckets,
    send_weights,
)

logger = logging.getLogger(__name__)


def open_weight_sync(
    engine: VLLMServerEngine,
    device: torch.device,
    *,
    port: int | None = None,
    timeout_seconds: float = 300.0,
) -> WeightSync:
    """The way that the server was started for, once its workers have joined it.

    A server that was started for shared memory gets the weights by gloo, with a warning, where its
    memory and the trainer's cannot be shared.

    Args:
        engine: The server.
        device: The trainer's.
        port: Where the trainer listens for the server's workers; a free one if None.
        timeout_seconds: For the workers to join, and for each step of an update.

    Raises:
        VLLMServerError: That way does not go from `device`, or the workers did not join.
    """
    config = engine.server_info().get("weight_transfer_config") or {}
    backend = config.get("backend")
    mismatch = pairing_error(backend, device.type, engine.base_url)
    if mismatch is not None:
        raise VLLMServerError(mismatch)
    if backend == vllm_compat.BACKENDS["nccl"]:
        return NCCLWeightSync(engine, device, port=port, timeout_seconds=timeout_seconds)
    if backend == vllm_compat.BACKENDS["ipc"]:
        try:
            return IPCWeightSync(engine, device, timeout_seconds=timeout_seconds)
        except (SharedMemoryError, VLLMRefusal) as error:
            logger.warning(
                "weights go to the vLLM server through gloo, which is slower: its memory and the "
                "trainer's cannot be shared (%s)",
                error,
            )
    return GlooWeightSync(engine, port=port, timeout_seconds=timeout_seconds)


def pairing_error(backend: str | None, device_type: str, base_url: str) -> str | None:
    """Why a trainer on `device_type` cannot send weights by the backend that the server was
    started with (None: with none); None if it can."""
    can = ("nccl", "gloo") if device_type == "cuda" else ("gloo",)
    if backend in [vllm_compat.BACKENDS[way] for way in (*can, "ipc")]:
        return None
    return (
        f"the vLLM server at {base_url} receives weights by {backend or 'nothing'}, but a trainer "
        f"on {device_type} sends by {' or '.join(can)}; start the server with `trl-r1zero serve "
        f"MODEL --weight_transfer {can[0]}`"
    )


class GlooWeightSync(WeightSync):
    """Weights by gloo broadcast; see `open_weight_sync` for the arguments."""

    def __init__(
        self, engine: VLLMServerEngine, *, port: int | None = None, timeout_seconds: float = 300.0
    ) -> None:
        super().__init__(engine, timeout_seconds)
        meeting = self._meeting(port)
        info = meeting.init_info | {"timeout_seconds": timeout_seconds}
        self._group: GlooGroup = self._beside(
            vllm_compat.INIT_TRANSFER, {"init_info": info}, meeting.join
        )

    def _send(self, infos: Sequence[TensorInfo], tensors: NamedTensors) -> None:
        self._beside(
            vllm_compat.UPDATE_WEIGHTS,
            {"update_info": update_info(infos)},
            lambda while_waiting: send_weights(self._group, infos, tensors, while_waiting),
        )


class IPCWeightSync(WeightSync):
    """Weights through a buffer of this process that the server's workers have opened.

    Each `/update_weights` announces what lies in the buffer by then. Its answer says that the
    workers have taken it out, so the next bucket may be put there. A SharedMemoryError if this
    process has no memory to share.
    """

    def __init__(
        self,
        engine: VLLMServerEngine,
        device: torch.device,
        *,
        timeout_seconds: float = 300.0,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        super().__init__(engine, timeout_seconds)
        num_workers = self._num_workers()
        self._buffer_bytes = buffer_bytes
        self._buffer = SharedBuffer(numbered(device), buffer_bytes)
        try:
            handle = self._buffer.handle()
            if isinstance(handle, CUDAHandle) and num_workers > 1:
                raise SharedMemoryError(
                    f"the server has {num_workers} workers, and one of them alone is on this GPU"
                )
            body = {"init_info": {"buffer": handle.as_json()}}
            self._request("POST", vllm_compat.INIT_TRANSFER, body)
        except BaseException:
            self._buffer.close()
            raise

    def close(self) -> None:
        """As `WeightSync.close`."""
        self._buffer.close()

    def _send(self, infos: Sequence[TensorInfo], tensors: NamedTensors) -> None:
        for bucket, bucket_tensors in fill_buckets(infos, tensors, self._buffer_bytes):
            for start, num_bytes in self._buffer.fill(bucket_tensors):
                info = update_info(bucket) | {"start": start, "num_bytes": num_bytes}
                self._request("POST", vllm_compat.UPDATE_WEIGHTS, {"update_info": info})
