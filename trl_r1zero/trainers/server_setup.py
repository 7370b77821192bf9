"""What a vLLM server is asked for: where it is or how it is started, completions, and a probe."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trl_r1zero.generation import Completion, SamplingConfig
from trl_r1zero.generation.adapter_sync import LoraPlan
from trl_r1zero.generation.server_pool import VLLMServerPool
from trl_r1zero.generation.server_sleep import Memory, ServerState
from trl_r1zero.generation.vllm_client import VLLMServerEngine
from trl_r1zero.generation.vllm_server import VLLMServerConfig, VLLMServerError

# How far the server's and the trainer's log-probabilities of a token may differ on average, in
# nats, by the coarser dtype of the two. With the same weights they differ by the order of sums: by
# 1e-6 in float32 on the quickstart's model.
PROBE_TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}


@dataclass(frozen=True)
class ServerAddress:
    """Where servers that somebody else started are to be found.

    Attributes:
        base_urls: Such as `http://127.0.0.1:8000`; several are asked as one.
        wait_seconds: How long to wait for each to come up.
    """

    base_urls: tuple[str, ...]
    wait_seconds: float

    def connect(
        self, tokenizer: PreTrainedTokenizerBase, timeout_seconds: float = 600.0
    ) -> VLLMServerEngine:
        """An engine over them; `timeout_seconds` are those of each answer.

        Raises:
            VLLMServerError: One is not up, or not like the first.
        """
        urls, wait = self.base_urls, self.wait_seconds
        if len(urls) > 1:
            return VLLMServerPool(
                urls, tokenizer, read_timeout_seconds=timeout_seconds, wait_seconds=wait
            )
        return VLLMServerEngine(
            urls[0], tokenizer, read_timeout_seconds=timeout_seconds, wait_seconds=wait
        )


@dataclass(frozen=True)
class ServerSetup:
    """A server, and how to speak to it.

    Attributes:
        server: The settings of a server to start (and, should it die, to start again), or the
            address of one that somebody else runs.
        model_path: What a server of its own is started with; its weights are replaced at once.
        log_path: Log of a server of its own.
        group_port: See `open_weight_sync`.
        request_timeout_seconds: For each completion, and for each step of a weight update.
        lora: How adapters reach it.
    """

    server: VLLMServerConfig | ServerAddress
    model_path: str
    log_path: Path
    group_port: int | None
    request_timeout_seconds: float
    lora: LoraPlan = field(default_factory=LoraPlan)

    @property
    def num_servers(self) -> int:
        """How many get the weights."""
        return len(self.server.base_urls) if isinstance(self.server, ServerAddress) else 1

    def open(self, tokenizer: PreTrainedTokenizerBase) -> tuple[VLLMServerEngine, int, ServerState]:
        """The server, started if it is an own one; its sleep level; and what it has.

        Raises:
            VLLMServerError: It does not come up.
        """
        server, timeout = self.server, self.request_timeout_seconds
        if isinstance(server, ServerAddress):
            engine = server.connect(tokenizer, timeout)
            # Its last trainer may have left it asleep.
            memory = Memory.NOTHING if engine.is_sleeping() else Memory.ALL
            return engine, 2 if engine.can_sleep() else 0, ServerState(memory)
        engine = VLLMServerEngine.start(
            self.model_path,
            server,
            tokenizer,
            log_path=self.log_path,
            read_timeout_seconds=timeout,
        )
        return engine, server.sleep_level or 0, ServerState()


@dataclass
class ServerRequest:
    """Completions that a server was asked for.

    Attributes:
        prompt_ids, sampling, seeds: What for, of all processes.
        completions: Empty until they are there.
        versions: Of the weights that sampled each one's first token; see
            `ServerGeneration.version`.
        future: Gives them, on the first process alone; None if they are not under way.
        engine: What was asked; another one, once that has died.
    """

    prompt_ids: list[list[int]]
    sampling: SamplingConfig
    seeds: list[int]
    completions: list[Completion] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    future: Future[list[Completion]] | None = None
    engine: VLLMServerEngine | None = None


def compare_probe(
    engine: VLLMServerEngine, token_ids: list[int], trainer_log_probs: Tensor, dtype: str
) -> float:
    """Compare the server's log-probabilities of a sequence with the trainer's.

    Args:
        engine: The server.
        token_ids: The sequence, of T + 1 tokens.
        trainer_log_probs: (T,) of its tokens but the first, at temperature 1, in nats.
        dtype: What the trainer computes in, such as `bfloat16`.

    Returns:
        The mean absolute difference, in nats.

    Raises:
        VLLMServerError: It is above what the coarser of the two dtypes explains.
    """
    server_T = torch.tensor(engine.log_probs(token_ids), dtype=torch.float64)
    difference = (server_T - trainer_log_probs.double().cpu()).abs().mean().item()
    dtypes = (dtype, engine.dtype())
    tolerance = max(PROBE_TOLERANCES[name] for name in dtypes)
    if not difference <= tolerance:  # a NaN is no agreement either
        raise VLLMServerError(
            f"after a synchronisation the vLLM server at {engine.base_url} does not have the "
            f"trainer's weights: their log-probabilities of a probe differ by {difference:.3g} "
            f"nats a token, more than {tolerance:g} ({dtypes[0]} trainer, {dtypes[1]} server). "
            "Does it serve the same model? vllm_check_syncs: 0 trains regardless"
        )
    return difference
