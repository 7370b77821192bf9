"""Weights by NCCL, through TRL's client, with timeouts and without repeated requests.

TRL's module imports vLLM, which takes seconds: it is imported only where a trainer on CUDA needs
it.
"""

import socket
from collections.abc import Sequence
from typing import Any

import torch
from trl.generation.vllm_client import VLLMClient

from .vllm_client import VLLMServerEngine
from .weight_sync import NamedTensors, run_watched
from .weight_transfer import TensorInfo


class NCCLWeightSync:
    """Weights by packed NCCL broadcast; see `weight_sync.open_weight_sync` for the arguments."""

    def __init__(
        self,
        engine: VLLMServerEngine,
        device: torch.device,
        *,
        port: int | None = None,
        timeout_seconds: float = 300.0,
    ) -> None:
        self._device = device
        self._client = _TimedClient(engine, port or _free_port(), timeout_seconds)
        self._run(lambda: self._client.init_communicator(device))

    def update(self, infos: Sequence[TensorInfo], tensors: NamedTensors) -> None:
        """As `WeightSync.update`."""
        metadata = [(info.name, info.dtype, list(info.shape)) for info in infos]

        def send() -> None:
            with self._client.weight_update():
                self._client.update_named_params(metadata, tensors)

        self._run(send)
        self._client.reset_prefix_cache()

    def _run(self, work: Any) -> None:
        def on_device() -> None:
            torch.cuda.set_device(self._device)  # a thread has a current device of its own
            work()

        self._client.error = None
        run_watched(on_device, lambda: self._client.error)


class _TimedClient(VLLMClient):
    """TRL's client, its requests replaced by the engine's: one try, timeouts, clear errors."""

    def __init__(self, engine: VLLMServerEngine, port: int, timeout_seconds: float) -> None:
        self.engine = engine
        self.timeout_seconds = timeout_seconds
        self.error: BaseException | None = None
        super().__init__(base_url=engine.base_url, group_port=port)

    def _get(self, url: str, **kwargs: Any) -> dict[str, Any]:
        return self._request("GET", url, None)

    def _post(self, url: str, **kwargs: Any) -> dict[str, Any]:
        return self._request("POST", url, kwargs.get("json"))

    def _request(self, method: str, url: str, body: dict[str, Any] | None) -> dict[str, Any]:
        path = url.removeprefix(self.base_url)
        try:
            answer: dict[str, Any] = self.engine.request(
                method, path, body, read_timeout_seconds=self.timeout_seconds
            )
        except BaseException as error:
            self.error = self.error or error
            raise
        return answer


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
