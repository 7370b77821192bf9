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
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch

from . import vllm_compat
from .vllm_client import VLLMServerEngine
from .vllm_server import VLLMServerError
from .weight_transfer import (
    NamedTensors,
    TensorInfo,
    TrainerRendezvous,
)

T = TypeVar("T")

# For the server's own reason, once the transfer has failed here: it may never answer any more.
_SECONDS_FOR_A_REASON = 5.0


class StuckTransferError(VLLMServerError):
    """A broadcast that nothing can end any more: another server would not help this process."""


def wire_dtype(dtype: torch.dtype, server_dtype: torch.dtype | None) -> torch.dtype:
    """The dtype that a tensor travels in: the server's (None if unknown) where that is narrower.

    The server rounds what it receives to its own dtype, in the same way, so the results are the
    same at half the traffic. (What a model of vLLM's keeps in float32 whatever its dtype, as the
    router's bias of some mixtures of experts, is rounded too.)
    """
    if server_dtype is None or not (dtype.is_floating_point and server_dtype.is_floating_point):
        return dtype
    return server_dtype if server_dtype.itemsize < dtype.itemsize else dtype


class WeightSync:
    """A way of weights to a server: the requests, each with a timeout, and what happens when one
    of them fails."""

    def __init__(self, engine: VLLMServerEngine, timeout_seconds: float) -> None:
        self.engine = engine
        self.timeout_seconds = timeout_seconds

    def update(
        self, infos: Sequence[TensorInfo], tensors: NamedTensors, requests_run: bool = False
    ) -> None:
        """Replace the server's weights by `tensors`, which `infos` announces.

        Requests that run meanwhile (`requests_run`) stand still, and go on with the new weights.

        `tensors` is not asked for more than `infos` has: what follows the last one (adapters are
        taken out of the weights again) must wait until the weights have left.

        Raises:
            VLLMServerError: The server refused, or is gone; its weights are undefined until a
                whole update has reached it.
        """
        with self._paused(requests_run) as reset_cache:
            self._request("POST", vllm_compat.START_UPDATE, {})
            self._send(infos, tensors)
            self._request("POST", vllm_compat.FINISH_UPDATE, {})
            self._request("POST", reset_cache)

    @contextmanager
    def _paused(self, requests_run: bool) -> Iterator[str]:
        """While weights are replaced; gives how the cache is reset then."""
        if not requests_run:
            yield vllm_compat.RESET_PREFIX_CACHE
            return
        self._request("POST", vllm_compat.PAUSE)
        try:
            yield vllm_compat.RESET_RUNNING
        except BaseException:
            with suppress(VLLMServerError):  # the first error counts
                self._request("POST", vllm_compat.RESUME)
            raise
        self._request("POST", vllm_compat.RESUME)

    def close(self) -> None:
        """Give up the connection; a new one may be opened."""

    def _send(self, infos: Sequence[TensorInfo], tensors: NamedTensors) -> None:
        """The tensors, with the `/update_weights` that announces them."""
        raise NotImplementedError

    def _num_workers(self) -> int:
        return int(self._request("GET", vllm_compat.GET_WORLD_SIZE)["world_size"])

    def _meeting(self, port: int | None) -> TrainerRendezvous:
        """Where the server's workers are to come; it listens already."""
        host = urlsplit(self.engine.base_url).hostname or ""
        return TrainerRendezvous(host, self._num_workers(), port, self.timeout_seconds)

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return self.engine.request(method, path, body, read_timeout_seconds=self.timeout_seconds)

    def _beside(
        self, path: str, body: dict[str, Any], work: Callable[[Callable[[], None]], T]
    ) -> T:
        """What `work` returns, which has to happen here while the server works on a request.

        The first error of the two is raised, the request's if it fails within seconds of the other,
        as it has the reason. An error of the transfer is the server's business, whatever its class:
        gloo and NCCL have none of their own. `work` is given a function that raises the request's
        error, if there is one already.
        """
        request = in_thread(lambda: self._request("POST", path, body))

        def raise_if_failed() -> None:
            if request.done():
                request.result()

        try:
            result = work(raise_if_failed)
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
        return result


def numbered(device: torch.device) -> torch.device:
    """A CUDA device with its number: without one, as accelerate gives it to a single process, it
    is the calling thread's current one."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


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
