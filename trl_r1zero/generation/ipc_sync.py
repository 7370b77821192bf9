"""Weights through memory that trainer and server share: of one GPU, or, on CPUs, of one machine.

Each `/update_weights` announces what lies in the buffer by then. Its answer says that the server's
workers have taken it out, so the next bucket may be put there.
"""

import logging
from collections.abc import Sequence
from itertools import islice

import torch

from .nccl_sync import device_index
from .shared_buffer import BUFFER_BYTES, CUDAHandle, SharedBuffer, SharedMemoryError
from .vllm_client import VLLMRefusal, VLLMServerEngine
from .weight_sync import GlooWeightSync, NamedTensors, ServerWeightSync, WeightSync, update_info
from .weight_transfer import TensorInfo, cut_into_buckets

logger = logging.getLogger(__name__)


def open_ipc_or_gloo(
    engine: VLLMServerEngine, device: torch.device, *, port: int | None, timeout_seconds: float
) -> WeightSync:
    """Shared memory if trainer and server both have it; through gloo if one of them has not.

    Raises:
        VLLMServerError: The server is gone, or its workers do not come to gloo's meeting either.
    """
    try:
        return IPCWeightSync(engine, device, timeout_seconds=timeout_seconds)
    except (SharedMemoryError, VLLMRefusal) as error:
        logger.warning(
            "weights go to the vLLM server through gloo, which is slower: its memory and the "
            "trainer's cannot be shared (%s)",
            error,
        )
    return GlooWeightSync(engine, port=port, timeout_seconds=timeout_seconds)


class IPCWeightSync(ServerWeightSync):
    """Weights through a buffer of this process that the server's workers have opened.

    Args:
        engine: The server.
        device: The trainer's device, and the server's.
        timeout_seconds: For each request.
        buffer_bytes: Size of the buffer, which this process keeps; larger tensors go in pieces.

    Raises:
        SharedMemoryError: This process has no memory to share.
        VLLMServerError: The server does not see it, or is gone.
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
        if device.type == "cuda":
            device = torch.device("cuda", device_index(device, torch.cuda.current_device))
        num_workers = self._request("GET", "/get_world_size")["world_size"]
        self._buffer_bytes = buffer_bytes
        self._buffer = SharedBuffer(device, buffer_bytes)
        try:
            handle = self._buffer.handle()
            if isinstance(handle, CUDAHandle) and num_workers > 1:
                raise SharedMemoryError(
                    f"the server has {num_workers} workers, and one of them alone is on this GPU"
                )
            body = {"init_info": {"buffer": handle.as_json()}}
            self._request("POST", "/init_weight_transfer_engine", body)
        except BaseException:
            self._buffer.close()
            raise

    def close(self) -> None:
        """As `WeightSync.close`."""
        self._buffer.close()

    def _send(self, infos: Sequence[TensorInfo], tensors: NamedTensors) -> None:
        for bucket in cut_into_buckets(infos, self._buffer_bytes):
            named = list(islice(tensors, len(bucket)))
            assert [name for name, _ in named] == [info.name for info in bucket]
            num_bytes = sum(info.num_bytes for info in bucket)
            for start, length in self._buffer.fill([tensor for _, tensor in named], num_bytes):
                info = update_info(bucket) | {"start": start, "num_bytes": length}
                self._request("POST", "/update_weights", {"update_info": info})
