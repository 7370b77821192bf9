"""Sending the policy's weights to a vLLM server: by gloo, by NCCL from one GPU to another, or
through memory that both share.

An update is three requests (`start_weight_update`, `update_weights`, `finish_weight_update`); the
tensors themselves travel beside the second one. No request is ever repeated: a second
`update_weights` outside of its session would hide the first error. The error of a request ends the
transfer at once, so a server that fails does not leave the trainer waiting in a broadcast.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Protocol
from urllib.parse import urlsplit

import torch
from torch import Tensor

from .vllm_client import VLLMServerEngine
from .vllm_server import VLLMServerError
from .weight_transfer import (
    BACKEND,
    IPC_BACKEND,
    GlooGroup,
    TensorInfo,
    TrainerRendezvous,
    send_weights,
)

NCCL_BACKEND = "nccl"

NamedTensors = Iterator[tuple[str, Tensor]]

# For the server's own reason, once the transfer has failed here: it may never answer any more.
_SECONDS_FOR_A_REASON = 5.0


class StuckTransferError(VLLMServerError):
    """A broadcast that nothing can end any more: another server would not help this process."""


class WeightSync(Protocol):
    """A way of weights from this process to a server."""

    def update(self, infos: Sequence[TensorInfo], tensors: NamedTensors) -> None:
        """Replace the server's weights.

        Args:
            infos: What `tensors` will yield, in order.
            tensors: The weights, by their names in the checkpoint. Not asked for more than
                `infos` has: what follows the last one (adapters are taken out of the weights
                again) must wait until the weights have left.

        Raises:
            VLLMServerError: The server refused, or is gone; its weights are undefined until a
                whole update has reached it.
        """
        ...

    def close(self) -> None:
        """Give up the connection; a new one may be opened."""
        ...


def wire_dtype(dtype: torch.dtype, server_dtype: torch.dtype | None) -> torch.dtype:
    """The dtype that a tensor travels in.

    That of the server where it is narrower: the server rounds what it receives to its own dtype, in
    the same way, so the results are the same at half the traffic. (What a model of vLLM's keeps in
    float32 whatever its dtype, as the router's bias of some mixtures of experts, is rounded too.)

    Args:
        dtype: The tensor's own.
        server_dtype: What the server computes in; None if unknown.
    """
    if server_dtype is None or not (dtype.is_floating_point and server_dtype.is_floating_point):
        return dtype
    return server_dtype if server_dtype.itemsize < dtype.itemsize else dtype


def open_weight_sync(
    engine: VLLMServerEngine,
    device: torch.device,
    *,
    port: int | None = None,
    timeout_seconds: float = 300.0,
) -> WeightSync:
    """The way that the server was started for, once its workers have joined it.

    Args:
        engine: The server.
        device: The trainer's device: NCCL needs CUDA, gloo goes from any, and memory can be shared
            on the server's own.
        port: Where the trainer listens for the server's workers; a free one if None.
        timeout_seconds: For the workers to join, and for each step of an update.

    Raises:
        VLLMServerError: The server was not started for a way that goes from `device`, or its
            workers did not join.
    """
    config = engine.server_info().get("weight_transfer_config") or {}
    backend = config.get("backend")
    mismatch = pairing_error(backend, device.type, engine.base_url)
    if mismatch is not None:
        raise VLLMServerError(mismatch)
    if backend == NCCL_BACKEND:
        from .nccl_sync import NCCLWeightSync

        return NCCLWeightSync(engine, device, port=port, timeout_seconds=timeout_seconds)
    if backend == IPC_BACKEND:
        from .ipc_sync import open_ipc_or_gloo

        return open_ipc_or_gloo(engine, device, port=port, timeout_seconds=timeout_seconds)
    return GlooWeightSync(engine, port=port, timeout_seconds=timeout_seconds)


def pairing_error(backend: str | None, device_type: str, base_url: str) -> str | None:
    """Why a trainer on such a device cannot send weights by the server's backend; None if it can.

    Args:
        backend: What the server was started with; None if with nothing.
        device_type: The trainer's, such as `cuda`.
        base_url: The server's, for the message.
    """
    can = (NCCL_BACKEND, BACKEND) if device_type == "cuda" else (BACKEND,)
    if backend in (*can, IPC_BACKEND):
        return None
    return (
        f"the vLLM server at {base_url} receives weights by {backend or 'nothing'}, but a trainer "
        f"on {device_type} sends by {' or '.join(can)}; start the server with `trl-r1zero serve "
        f"MODEL --weight_transfer {can[0]}`"
    )


class ServerWeightSync:
    """What all ways have in common: the requests, and what happens when one of them fails.

    Args:
        engine: The server.
        timeout_seconds: For each request.
    """

    def __init__(self, engine: VLLMServerEngine, timeout_seconds: float) -> None:
        self.engine = engine
        self.timeout_seconds = timeout_seconds

    def update(self, infos: Sequence[TensorInfo], tensors: NamedTensors) -> None:
        """As `WeightSync.update`."""
        self._request("POST", "/start_weight_update", {})
        self._send(infos, tensors)
        self._request("POST", "/finish_weight_update", {})
        self._request("POST", "/reset_prefix_cache")

    def close(self) -> None:
        """As `WeightSync.close`."""

    def _send(self, infos: Sequence[TensorInfo], tensors: NamedTensors) -> None:
        """The tensors, with the `/update_weights` that announces them."""
        raise NotImplementedError

    def _meeting(self, port: int | None) -> TrainerRendezvous:
        """Where the server's workers are to come; it listens already."""
        num_workers = self._request("GET", "/get_world_size")["world_size"]
        host = urlsplit(self.engine.base_url).hostname or ""
        return TrainerRendezvous(host, num_workers, port, self.timeout_seconds)

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return self.engine.request(method, path, body, read_timeout_seconds=self.timeout_seconds)

    def _beside(
        self, path: str, body: dict[str, Any], work: Callable[[Callable[[], None]], None]
    ) -> None:
        """A request, and what has to happen here while the server works on it.

        The first error of the two is raised, the request's if it fails within seconds of the other,
        as it has the reason. An error of the transfer is the server's business, whatever its class:
        gloo and NCCL have no class of their own.

        Args:
            path, body: The request.
            work: Is given a function that raises the request's error, if there is one already.
        """
        request = in_thread(lambda: self._request("POST", path, body))

        def raise_if_failed() -> None:
            if request.done():
                request.result()

        try:
            work(raise_if_failed)
        except VLLMServerError:
            raise
        except (RuntimeError, OSError, ValueError) as error:
            try:
                reason = request.exception(timeout=_SECONDS_FOR_A_REASON)
            except TimeoutError:  # it waits for weights; its thread ends with its timeout
                reason = None
            if isinstance(reason, VLLMServerError):
                raise reason from error
            raise VLLMServerError(
                f"the transfer of weights to the vLLM server at {self.engine.base_url} broke off: "
                f"{error or type(error).__name__}"
            ) from error
        request.result()


class GlooWeightSync(ServerWeightSync):
    """Weights by gloo broadcast; see `open_weight_sync` for the arguments."""

    def __init__(
        self, engine: VLLMServerEngine, *, port: int | None = None, timeout_seconds: float = 300.0
    ) -> None:
        super().__init__(engine, timeout_seconds)
        meeting = self._meeting(port)
        groups: list[GlooGroup] = []
        self._beside(
            "/init_weight_transfer_engine",
            {"init_info": meeting.init_info},
            lambda while_waiting: groups.append(meeting.join(while_waiting)),
        )
        self._group = groups[0]

    def _send(self, infos: Sequence[TensorInfo], tensors: NamedTensors) -> None:
        self._beside(
            "/update_weights",
            {"update_info": update_info(infos)},
            lambda while_waiting: send_weights(self._group, infos, tensors, while_waiting),
        )


def update_info(infos: Sequence[TensorInfo]) -> dict[str, Any]:
    """What `/update_weights` is told about the tensors to come."""
    return {
        "names": [info.name for info in infos],
        "dtype_names": [info.dtype for info in infos],
        "shapes": [list(info.shape) for info in infos],
    }


def in_thread(work: Callable[[], Any]) -> Future[Any]:
    """The result to come of `work`, in a thread that does not keep the process from ending."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result
