"""Sending the policy's weights to a vLLM server: by gloo, or by NCCL as TRL does.

An update is three requests (`start_weight_update`, `update_weights`, `finish_weight_update`); the
tensors themselves travel beside the second one. No request is ever repeated: a second
`update_weights` outside of its session would hide the first error. The error of a request ends the
transfer at once, so a server that fails does not leave the trainer waiting in a broadcast.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol
from urllib.parse import urlsplit

import torch
from torch import Tensor

from .vllm_client import VLLMServerEngine
from .vllm_server import VLLMServerError
from .weight_transfer import BACKEND, GlooGroup, TensorInfo, TrainerRendezvous, send_weights

NamedTensors = Iterator[tuple[str, Tensor]]


class WeightSync(Protocol):
    """A way of weights from this process to a server."""

    def update(self, infos: Sequence[TensorInfo], tensors: NamedTensors) -> None:
        """Replace the server's weights.

        Args:
            infos: What `tensors` will yield, in order.
            tensors: The weights, by their names in the checkpoint.

        Raises:
            VLLMServerError: The server refused, or is gone; its weights are undefined until a
                whole update has reached it.
        """
        ...


def open_weight_sync(
    engine: VLLMServerEngine,
    device: torch.device,
    *,
    port: int | None = None,
    timeout_seconds: float = 300.0,
) -> WeightSync:
    """The way that fits the trainer's device, once the server's workers have joined it.

    Args:
        engine: The server.
        device: The trainer's device: NCCL from CUDA, gloo from any other.
        port: Where the trainer listens for the server's workers; a free one if None.
        timeout_seconds: For the workers to join, and for each step of an update.

    Raises:
        VLLMServerError: The server was not started for that, or its workers did not join.
    """
    wanted = "nccl" if device.type == "cuda" else BACKEND
    config = engine.server_info()["weight_transfer_config"]
    has = None if config is None else config["backend"]
    if has != wanted:
        raise VLLMServerError(
            f"the vLLM server at {engine.base_url} receives weights by {has or 'nothing'}, but a "
            f"trainer on {device.type} sends by {wanted}; start the server with `trl-r1zero serve "
            f"MODEL --weight_transfer {wanted}`"
        )
    if wanted == "nccl":
        from .nccl_sync import NCCLWeightSync

        return NCCLWeightSync(engine, device, port=port, timeout_seconds=timeout_seconds)
    return GlooWeightSync(engine, port=port, timeout_seconds=timeout_seconds)


class GlooWeightSync:
    """Weights by gloo broadcast; see `open_weight_sync` for the arguments."""

    def __init__(
        self, engine: VLLMServerEngine, *, port: int | None = None, timeout_seconds: float = 300.0
    ) -> None:
        self.engine = engine
        self.timeout_seconds = timeout_seconds
        num_workers = self._request("GET", "/get_world_size")["world_size"]
        meeting = TrainerRendezvous(
            urlsplit(engine.base_url).hostname or "", num_workers, port, timeout_seconds
        )

        groups: list[GlooGroup] = []
        self._beside(
            "/init_weight_transfer_engine",
            {"init_info": meeting.init_info},
            lambda while_waiting: groups.append(meeting.join(while_waiting)),
        )
        self._group = groups[0]

    def update(self, infos: Sequence[TensorInfo], tensors: NamedTensors) -> None:
        """As `WeightSync.update`."""
        self._request("POST", "/start_weight_update", {})
        self._beside(
            "/update_weights",
            {"update_info": update_info(infos)},
            lambda while_waiting: send_weights(self._group, infos, tensors, while_waiting),
        )
        self._request("POST", "/finish_weight_update", {})
        self._request("POST", "/reset_prefix_cache")

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return self.engine.request(method, path, body, read_timeout_seconds=self.timeout_seconds)

    def _beside(
        self, path: str, body: dict[str, Any], work: Callable[[Callable[[], None]], None]
    ) -> None:
        """A request, and what has to happen here while the server works on it.

        The first error of the two is raised: the request's, if it failed, as it has the reason.
        """
        with ThreadPoolExecutor(max_workers=1) as executor:
            request: Future[Any] = executor.submit(self._request, "POST", path, body)

            def raise_if_failed() -> None:
                if request.done():
                    request.result()

            try:
                work(raise_if_failed)
            except VLLMServerError:
                raise
            except (RuntimeError, TimeoutError) as error:  # gloo: a peer is gone, or too late
                request.result()  # the server's own reason comes first
                raise VLLMServerError(f"the transfer of weights broke off: {error}") from error
            request.result()


def update_info(infos: Sequence[TensorInfo]) -> dict[str, Any]:
    """What `/update_weights` is told about the tensors to come."""
    return {
        "names": [info.name for info in infos],
        "dtype_names": [info.dtype for info in infos],
        "shapes": [list(info.shape) for info in infos],
    }


def run_watched(work: Callable[[], None], first_error: Callable[[], BaseException | None]) -> None:
    """Run `work` in a thread, and stop waiting for it soon after `first_error` has an error.

    For work that cannot be interrupted, such as a NCCL broadcast whose receiver is gone.
    """
    result: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            result.set_exception(error)
        else:
            result.set_result(None)

    threading.Thread(target=run, daemon=True).start()
    while True:
        try:
            return result.result(timeout=1.0)
        except TimeoutError:
            error = None if result.done() else first_error()
            if error is not None:
                raise error from None
