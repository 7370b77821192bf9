"""Sampling completions and grading them, for every trainer that does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from tqdm import tqdm
from trl import GRPOTrainer
from trl.models.utils import unwrap_model_for_generation

from trl_r1zero.evaluation import mean
from trl_r1zero.functional import get_response_log_probs
from trl_r1zero.generation import Completion, SamplingConfig, TransformersEngine, in_order
from trl_r1zero.generation.vllm_server import VLLMServerConfig

from .grpo_config import R1ZeroGRPOConfig
from .server_generation import ServerAddress, ServerGeneration
from .timing import StepTimer


@dataclass
class Grades:
    """What the reward functions say.

    Attributes:
        rewards: (N*G,) total rewards of all processes' completions.
        parts: For each completion of this process, the parts of its reward, by name.
        extras: The same for what is no number, such as the `rule` that decided.
        metrics: What the reward functions logged, mean over processes.
    """

    rewards: Tensor
    parts: list[dict[str, float]]
    extras: list[dict[str, Any]]
    metrics: dict[str, float]


class SamplingMixin(GRPOTrainer):
    """Completions of the current policy, from transformers or from a vLLM server, and rewards."""

    args: R1ZeroGRPOConfig
    model: Any
    train_dataset: Dataset
    timer: StepTimer
    server: ServerGeneration | None = None
    _synced_step: int | None = None  # optimizer updates that the server's weights have seen
    _num_syncs: int = 0

    def _sample_completions(
        self,
        prompts: list[str],
        sampling: SamplingConfig,
        seeds: list[int],
        *,
        batch_size: int | None,
        description: str,
    ) -> tuple[list[list[int]], list[Completion]]:
        """Token ids of the prompts, and one completion for each; a collective call.

        `batch_size` says how many rows the transformers backend takes at a time (None: all).
        """
        prompt_ids, _, _ = self._tokenize_prompts(prompts)
        show_progress = self.accelerator.is_main_process and not self.args.disable_tqdm
        if self.server is not None:
            self._sync_server()
            completions = self.server.sample(
                prompt_ids, sampling, seeds, description=description, show_progress=show_progress
            )
            return prompt_ids, completions
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,  # type: ignore[arg-type]
            ) as model,
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
            self.accelerator.autocast(),
        ):
            engine = TransformersEngine(
                model, self._tokenizer, eos_token_ids=self.eos_token_ids, batch_size=batch_size
            )
            rows = tqdm(
                engine.stream(prompt_ids, sampling, seeds),
                total=len(prompts),
                desc=description,
                unit="completion",
                leave=False,
                delay=2,
                disable=not show_progress,
            )
            return prompt_ids, in_order(rows)

    # The vLLM server

    def _connect_to_server(self) -> ServerGeneration:
        args = self.args
        server: VLLMServerConfig | ServerAddress
        if args.vllm_server is None:
            url = args.vllm_server_base_url
            server = ServerAddress(
                url or f"http://{args.vllm_server_host}:{args.vllm_server_port}",
                wait_seconds=args.vllm_server_timeout,
            )
        else:
            server = VLLMServerConfig.from_settings(args.vllm_server)
            if not self.model.name_or_path:
                raise ValueError(
                    "vllm_server starts a server, but the model is an object that was loaded from "
                    "nowhere; save it to a folder, and give the trainer that"
                )
        return ServerGeneration(
            self.model,
            self.accelerator,
            self._tokenizer,
            server,
            model_path=self.model.name_or_path,
            log_path=Path(args.output_dir or ".", "vllm_server.log"),
            group_port=args.vllm_group_port,
            request_timeout_seconds=args.vllm_request_timeout,
        )

    def _sync_server(self) -> None:
        """Give the server the current weights, unless it has them."""
        assert self.server is not None
        if self._synced_step == self.state.global_step:
            return
        with self.timer.part("weight_sync"):
            self.server.sync_weights()
        self._synced_step = self.state.global_step
        if self._num_syncs < self.args.vllm_check_syncs:
            self.check_server()
        self._num_syncs += 1

    def check_server(self) -> float:
        """Compare the server's and the trainer's log-probabilities of a probe, the first prompt.

        Returns:
            The mean absolute difference per token, in nats.

        Raises:
            VLLMServerError: It is above what the dtypes explain (`PROBE_TOLERANCES`).
        """
        if self.server is None:
            raise ValueError("there is no server to check: use_vllm is false")
        (ids,), _, _ = self._tokenize_prompts([self.train_dataset[0]["prompt"]])
        tokens_1T = torch.tensor([ids], device=self.accelerator.device)
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            output = get_response_log_probs(self.model, tokens_1T[:, :-1], tokens_1T[:, 1:])
        self.model.train(was_training)
        computes_in = "bfloat16" if self.args.bf16 else "float16" if self.args.fp16 else None
        dtype = computes_in or str(self.model.dtype).removeprefix("torch.")
        return self.server.check_probe(ids, output["log_probs"][0], dtype)

    # Rewards

    def _grade(
        self, examples: Sequence[dict[str, Any]], completions: Sequence[Completion]
    ) -> Grades:
        """Grade this process's completions; a collective call with equally many on each."""
        rewards_per_func = self._calculate_rewards(  # (N*G, number of reward functions)
            list(examples),
            [example["prompt"] for example in examples],
            [completion.text for completion in completions],
            [completion.token_ids for completion in completions],
        )
        if torch.isnan(rewards_per_func).all(dim=1).any():
            raise ValueError(
                "a reward function returned None or NaN; return a number for each completion"
            )
        weights = self.reward_weights.to(rewards_per_func.device)
        rewards = (rewards_per_func * weights).nansum(dim=1)
        grades = Grades(rewards.cpu(), [{} for _ in completions], [{} for _ in completions], {})
        for column, values in self._pending_extra_logs.items():
            for part, extra, value in zip(grades.parts, grades.extras, values, strict=True):
                (part if isinstance(value, int | float) else extra)[column] = value
        self._pending_extra_logs.clear()
        for name, values in sorted(self._pending_metrics.items()):
            local = torch.tensor(mean(values), device=self.accelerator.device)
            grades.metrics[name] = self.accelerator.reduce(local, "mean").item()
        self._pending_metrics.clear()
        return grades
