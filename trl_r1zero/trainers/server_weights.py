"""How a trainer's weights reach its vLLM servers."""

import torch

from trl_r1zero.generation.adapter_sync import AdapterSync
from trl_r1zero.generation.vllm_client import VLLMServerEngine
from trl_r1zero.generation.vllm_server import VLLMServerError
from trl_r1zero.generation.weight_engines import open_weight_sync
from trl_r1zero.generation.weight_sync import StuckTransferError, WeightSync
from trl_r1zero.generation.weight_transfer import NamedTensors, TensorInfo

from .policy_weights import PolicyWeights
from .server_setup import ServerSetup


class ServerWeights:
    """Sends the policy's weights to each of the servers.

    Args:
        policy: The weights.
        setup: The servers; the same on all processes.
        device: The trainer's.
    """

    def __init__(self, policy: PolicyWeights, setup: ServerSetup, device: torch.device) -> None:
        self.policy = policy
        self._setup = setup
        self._device = device
        self._infos: list[TensorInfo] | None = None
        # Of the first process alone; the ways by the servers' addresses.
        self._engine: VLLMServerEngine | None = None
        self._ways: dict[str, WeightSync] = {}

    def connect(self, engine: VLLMServerEngine, sleep_level: int) -> None:
        """Open a way to each server, on the first process; ways that were open are given up.

        Raises:
            VLLMServerError: See `open_weight_sync`.
        """
        self.close()  # their server is gone
        self._engine = engine
        self.policy.server_dtype = getattr(torch, engine.dtype())
        lora, alone = self._setup.lora, self._setup.num_servers == 1
        takes = engine.max_lora_rank() if lora.rank and alone else None
        self.policy.adapters = lora.go_alone(takes, sleep_level)
        self._ways = {one.base_url: self._open(one) for one in engine.alive}

    def send(self, requests_run: bool) -> None:
        """Give the servers the weights, one after the other; a collective call. A server that was
        left out and is up again gets them too, and takes part from then on.

        Raises:
            VLLMServerError: On the first process: the last server that was left failed.
        """
        if self._infos is None:
            self._infos = self.policy.infos()
        engine = self._engine
        waiting = [] if engine is None else [*engine.alive, *engine.returning()]
        # Sharded weights are gathered by all processes, once for each server that there may be.
        for _ in range(self._setup.num_servers):
            tensors = self.policy.tensors()
            try:
                if engine is not None and waiting:
                    self._send_to(waiting.pop(0), engine, tensors, requests_run)
            finally:
                # To the end in any case: gathering sharded weights waits for every process.
                for _ in tensors:
                    pass

    def close(self) -> None:
        """Give up the ways."""
        for way in self._ways.values():
            way.close()
        self._ways = {}

    def _send_to(
        self,
        server: VLLMServerEngine,
        engine: VLLMServerEngine,
        tensors: NamedTensors,
        requests_run: bool,
    ) -> None:
        url = server.base_url
        assert self._infos is not None
        try:
            if url in engine.balancer.lost:
                self._ways[url].close()
                self._ways[url] = self._open(server)
            self._ways[url].update(self._infos, tensors, requests_run)
        except StuckTransferError:
            raise
        except VLLMServerError as error:
            if not engine.lose(url, error):
                raise
        else:
            engine.balancer.take_back(url)

    def _open(self, server: VLLMServerEngine) -> WeightSync:
        timeout = self._setup.request_timeout_seconds
        if self.policy.adapters:
            return AdapterSync(server, self._setup.lora, timeout)
        port = self._setup.group_port
        return open_weight_sync(server, self._device, port=port, timeout_seconds=timeout)
