"""How a trainer samples, and how it validates, as its config says it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from trl_r1zero.common.arguments import AT_LEAST_0, Count, Positive, arg
from trl_r1zero.generation import SamplingConfig
from trl_r1zero.generation.adapter_sync import LORA_WAYS
from trl_r1zero.generation.sampling import DEFAULT_MIN_TOKENS
from trl_r1zero.generation.vllm_server_config import VLLMServerConfig

from .memory_limits import DEFAULT_GENERATION_ROWS
from .server_setup import ServerAddress


@dataclass
class SamplingSettings:
    """How a trainer samples, and how it validates: through transformers or a vLLM server."""

    min_tokens: int = arg(
        DEFAULT_MIN_TOKENS, "New tokens before an end-of-sequence token or stop string counts."
    )
    num_eval_examples: Count | None = arg(None, "The first N validation problems. Unset: all.")
    eval_temperature: float = arg(1.0, "Validation: temperature (0 is greedy).")
    eval_top_p: float = arg(1.0, "Validation: top-p.")
    eval_max_completion_length: Count | None = arg(
        None, "Validation: new tokens at most. Unset: max_completion_length."
    )
    eval_seed: int = arg(0, "Validation: seed of the sampling, the same at every validation.")
    eval_on_start: bool = arg(True, "Validate before the first update too.")
    per_device_eval_batch_size: Count | None = arg(
        None,
        "Completions that a process generates at a time, rollouts and validation alike "
        f"(transformers backend). Unset: {DEFAULT_GENERATION_ROWS}, on GPUs as many as fit into "
        "memory. Memory only.",
    )
    completion_entropies: bool = arg(
        True,
        "With use_vllm: run the policy over validation's completions (and expert iteration's "
        "rollouts) for their entropies, which vLLM does not give.",
    )
    use_vllm: bool = arg(False, "Sample from a vLLM server, not from transformers.")
    vllm_server: dict[str, Any] | None = arg(
        None,
        "With use_vllm: start a server for this run, with these settings ({} for all defaults; see "
        "`trl-r1zero serve --help`), and start it again should it die. Unset: connect to "
        "vllm_server_base_url, or vllm_server_host and vllm_server_port.",
    )
    vllm_server_base_url: str | list[str] | None = arg(
        None,
        "Address of a server that runs already, such as http://127.0.0.1:8000, or a list of those "
        "of several, which share the work.",
    )
    vllm_server_host: str = arg("127.0.0.1", "Host of a server that runs already.")
    vllm_server_port: int = arg(8000, "Port of a server that runs already.")
    vllm_server_timeout: float = arg(
        240.0, "Seconds to wait for a server that runs already to come up."
    )
    vllm_group_port: int | None = arg(
        None, "Port on which the trainer meets the server's workers. Unset: a free one."
    )
    vllm_request_timeout: Positive = arg(
        600.0,
        "Seconds that a completion, or one step of a weight update, may take at most.",
    )
    vllm_lora: str = arg(
        "auto",
        "With use_vllm and use_peft: adapters (go to the server by themselves, which applies them "
        "to each token), merged (into the weights, which go as a whole), or auto: adapters where "
        "a server was started for them (max_lora_rank), or is the run's own on a GPU and can take "
        "these, else merged.",
    )
    vllm_check_syncs: Annotated[int, AT_LEAST_0] = arg(
        3,
        "At the first N synchronisations, compare the server's log-probabilities of a probe "
        "with the trainer's, and stop if they differ.",
    )
    ds3_gather_for_generation: bool = arg(
        True, "DeepSpeed ZeRO-3 with transformers sampling: gather the weights first. Faster."
    )

    @property
    def running_servers(self) -> ServerAddress:
        """Where the server that runs already is, or several are."""
        given = self.vllm_server_base_url
        given = given or f"http://{self.vllm_server_host}:{self.vllm_server_port}"
        urls = (given,) if isinstance(given, str) else tuple(given)
        return ServerAddress(urls, wait_seconds=self.vllm_server_timeout)

    def rollout_sampling(self, stop: Sequence[str | int] = ()) -> SamplingConfig:
        """How rollouts are sampled, with what ends the prompt's responses."""
        args: Any = self
        return SamplingConfig(
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            min_p=args.min_p or 0.0,
            max_tokens=args.max_completion_length or 0,
            min_tokens=self.min_tokens,
            stop=tuple(stop),
        )

    def validation_sampling(self, stop: Sequence[str | int] = ()) -> SamplingConfig:
        """How validation samples, with what ends the prompt's responses."""
        longest = getattr(self, "max_completion_length", None)
        return SamplingConfig(
            temperature=self.eval_temperature,
            top_p=self.eval_top_p,
            max_tokens=self.eval_max_completion_length or longest or 0,
            min_tokens=self.min_tokens,
            stop=tuple(stop),
        )

    def _check_server(self) -> None:
        """Raise a ValueError for settings of the server that cannot work, before it is started."""
        config: Any = self
        config._check_choice("vllm_lora", LORA_WAYS)
        if self.vllm_lora != "auto" and not self.use_vllm:
            raise ValueError(
                f"vllm_lora is {self.vllm_lora}, but use_vllm is false; remove it, or set use_vllm "
                "to true"
            )
        if self.vllm_server is None:
            return
        if not self.use_vllm:
            raise ValueError(
                "vllm_server has settings, but use_vllm is false; set use_vllm to true, or "
                "vllm_server to null (--vllm_server null)"
            )
        VLLMServerConfig.from_settings(self.vllm_server)

    def _check_min_tokens(self, *limits: str) -> None:
        """Raise a ValueError unless `min_tokens` is between 0 and these limits, or the default.

        The first of them has to be set.
        """
        for number, name in enumerate(limits):
            limit = getattr(self, name)
            if limit is None and number == 0:
                raise ValueError(f"{name} must be a number of tokens, got None")
            if limit is not None and limit < 1:
                raise ValueError(f"{name} must be at least 1, got {limit}")
            most = math.inf if limit is None else limit
            if self.min_tokens != DEFAULT_MIN_TOKENS and not 0 <= self.min_tokens <= most:
                raise ValueError(
                    f"min_tokens must be between 0 and {name} ({limit}), got {self.min_tokens}"
                )
