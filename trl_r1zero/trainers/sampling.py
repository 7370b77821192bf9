"""Sampling completions and grading them, for every trainer that does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from trl import GRPOTrainer
from trl.models.utils import unwrap_model_for_generation

from trl_r1zero.evaluation import mean
from trl_r1zero.generation import Completion, SamplingConfig, cut_after_stop, generate

from .grpo_config import R1ZeroGRPOConfig


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

    def _sample_completions(
        self,
        prompts: list[str],
        sampling: SamplingConfig,
        seeds: list[int],
        *,
        completions_per_prompt: int,
        batch_size: int | None,
        description: str,
    ) -> tuple[list[list[int]], list[Completion]]:
        """Token ids of the prompts, and one completion for each.

        `completions_per_prompt` says how often each prompt stands in a row, `batch_size` how many
        rows the transformers backend takes at a time (None: all).
        """
        prompt_ids, _, _ = self._tokenize_prompts(prompts)
        if self.use_vllm:
            return prompt_ids, self._sample_with_vllm(prompt_ids, sampling, completions_per_prompt)
        was_training = self.model.training
        self.model.eval()  # no dropout while sampling
        progress = tqdm(
            total=len(prompts),
            desc=description,
            unit="completion",
            leave=False,
            delay=2,
            disable=self.args.disable_tqdm or not self.accelerator.is_main_process,
        )
        with (
            progress,
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,  # type: ignore[arg-type]
            ) as model,
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
            self.accelerator.autocast(),
        ):
            completions = generate(
                model,
                self._tokenizer,
                prompt_ids,
                sampling,
                seeds,
                eos_token_ids=self.eos_token_ids,
                batch_size=batch_size,
                on_rows_done=progress.update,
            )
        self.model.train(was_training)
        return prompt_ids, completions

    def _sample_with_vllm(
        self, prompt_ids: list[list[int]], sampling: SamplingConfig, completions_per_prompt: int
    ) -> list[Completion]:
        if self.state.global_step != self._last_loaded_step:
            self.vllm_generation.sync_weights()
            self._last_loaded_step = self.state.global_step
        server = self.vllm_generation
        server.temperature, server.top_p = sampling.temperature, sampling.top_p
        server.top_k, server.min_p = sampling.top_k, sampling.min_p
        server.max_completion_length = sampling.max_tokens
        server.generation_kwargs = {
            "stop": list(sampling.stop),
            "include_stop_str_in_output": True,
            "min_tokens": sampling.min_tokens,
        }
        _, token_ids, log_probs, _ = server.generate(
            prompts=prompt_ids, images=None, num_generations=completions_per_prompt
        )
        completions = []
        for ids, row_log_probs in zip(token_ids, log_probs, strict=True):
            text = self._tokenizer.decode(ids, skip_special_tokens=True)
            stopped_text = cut_after_stop(text, sampling.stop)
            ended = stopped_text is not None or (bool(ids) and ids[-1] in self.eos_token_ids)
            completions.append(
                Completion(
                    token_ids=list(ids),
                    text=text if stopped_text is None else stopped_text,
                    finish_reason="stop" if ended else "length",
                    log_probs=[token[0] for token in row_log_probs],
                )
            )
        return completions

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
