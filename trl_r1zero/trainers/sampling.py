"""Sampling completions and grading them, for every trainer that does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from torch import Tensor
from tqdm import tqdm
from trl.distributed import DistributedBackend
from trl.models.utils import unwrap_model_for_generation

from trl_r1zero.data.tokenization import pad_and_shift
from trl_r1zero.evaluation import GradedCompletion, graded_completion
from trl_r1zero.functional import get_response_log_probs
from trl_r1zero.generation import Completion, SamplingConfig, TransformersEngine, in_order
from trl_r1zero.generation.vllm_server import VLLMServerConfig

from .core_trainer import CoreTrainer
from .memory_limits import DEFAULT_GENERATION_ROWS, forward_limits
from .microbatches import MicroBatchLimits, PaddedRows, cut_rows
from .optimizer_state import AveragesFirst
from .rewards import GradeFn, extra_columns
from .server_generation import ServerAddress, ServerGeneration
from .server_place import place_own_server


@dataclass
class GradedSample:
    """Graded completions of all processes, in the order of their examples.

    Attributes:
        rows: The graded completions.
        token_ids: The tokens of each.
        metrics: What the reward functions logged, mean over processes.
    """

    rows: list[GradedCompletion]
    token_ids: list[list[int]]
    metrics: dict[str, float]


def check_sharding(accelerator: Accelerator, gather_zero3: bool) -> None:
    """Raise a ValueError where transformers' sampling would gather weights at every token.

    All processes have to take part in that, and they decode different numbers of tokens: the first
    one that is done would leave the others waiting, or meet them in another collective call.
    """
    if accelerator.num_processes == 1:
        return
    kind = accelerator.distributed_type
    if kind == DistributedType.FSDP:
        sharded, instead = "FSDP shares out the weights", "share out less (multi_gpu.yaml)"
    elif (
        kind == DistributedType.DEEPSPEED
        and accelerator.state.deepspeed_plugin.zero_stage == 3
        and not gather_zero3
    ):
        sharded = "ZeRO-3 shares out the weights and ds3_gather_for_generation is false"
        instead = "set ds3_gather_for_generation to true"
    else:
        return
    raise ValueError(
        f"use_vllm is false, but {sharded}: processes that sample different numbers of tokens "
        f"would wait for one another for ever; set use_vllm to true, or {instead}"
    )


@dataclass(frozen=True)
class _Sampled:
    """A prompt with its completion: its number, and the tokens of both."""

    number: int
    num_tokens: int


class SamplingMixin(CoreTrainer):
    """Completions of the current policy, from transformers or from a vLLM server, and rewards.

    Comes before TRL's trainer among the bases.

    Attributes:
        server: The vLLM server, if it samples.
    """

    train_dataset: Dataset
    server: ServerGeneration | None = None
    _synced_step: int | None = None  # optimizer updates that the server's weights have seen
    _num_syncs: int = 0

    def _set_up_sampling(self) -> None:
        """To be called at the end of `__init__`."""
        self._dist = DistributedBackend(self.accelerator)
        if self.args.use_vllm:
            self.server = self._connect_to_server()
            if self.server.sleep_level:
                self.add_callback(AveragesFirst())
        elif self.args.eval_every is not None:  # without validation, SFT samples nothing
            check_sharding(self.accelerator, self.args.ds3_gather_for_generation)

    def _prompt_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of formatted prompts, with the tokenizer's own special tokens."""
        return self._tokenizer(list(prompts))["input_ids"]

    def _longest_prompt(self) -> int:
        """Tokens of the longest training prompt; those of most characters are looked at."""
        prompts = sorted(self.train_dataset["prompt"], key=len)[-64:]
        return max(map(len, self._prompt_ids(prompts)))

    def _generation_rows(self, prompt_ids: Sequence[list[int]], max_tokens: int) -> int:
        """Completions that transformers generates at a time."""
        if self.rows_per_generation is not None:
            return self.rows_per_generation
        if self._memory is None:
            return DEFAULT_GENERATION_ROWS
        return self._memory.generation_rows(max(map(len, prompt_ids)) + max_tokens)

    def _sample_completions(
        self,
        prompts: list[str],
        sampling: SamplingConfig,
        seeds: list[int],
        *,
        description: str,
    ) -> tuple[list[list[int]], list[Completion]]:
        """Token ids of the prompts, and one completion for each; a collective call."""
        prompt_ids = self._prompt_ids(prompts)
        show_progress = self.accelerator.is_main_process and not self.args.disable_tqdm
        if self.server is not None:
            self._sync_server()
            completions = self.server.sample(
                prompt_ids, sampling, seeds, description=description, show_progress=show_progress
            )
            return prompt_ids, completions
        check_sharding(self.accelerator, self.args.ds3_gather_for_generation)
        batch_size = self._generation_rows(prompt_ids, sampling.max_tokens)
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
            self.accelerator.autocast(),
        ):
            engine = TransformersEngine(model, self._tokenizer, batch_size=batch_size)
            rows = tqdm(
                engine.stream(prompt_ids, sampling, seeds),
                total=len(prompts),
                desc=description,
                unit="completion",
                leave=False,
                delay=2,
                disable=not show_progress,
            )
            try:
                return prompt_ids, in_order(rows)
            except torch.OutOfMemoryError as error:
                raise torch.OutOfMemoryError(
                    f"{error}\n{batch_size} completions are generated at a time; set "
                    f"per_device_eval_batch_size to fewer, such as {max(batch_size // 2, 1)}"
                ) from error

    def _sample_and_grade(
        self,
        examples: Sequence[Mapping[str, Any]],
        sampling: SamplingConfig,
        seeds: Sequence[int],
        *,
        completions_per_example: int | None = None,
        description: str,
    ) -> GradedSample:
        """One graded completion for each of `examples`, shared among the processes.

        Args:
            examples: The same on every process.
            sampling: How to sample.
            seeds: One for each example.
            completions_per_example: If the examples stand so often side by side, the rows are
                numbered: standard errors are then over different examples. None: each stands once.
            description: Of the progress bar.

        Returns:
            The same on every process.
        """
        total = len(examples)
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        # Every process takes equally many rows (the collectives of grading want that); the surplus
        # wraps around to the first rows and is dropped again below.
        share = -(-total // world)
        numbers = range(rank * share, (rank + 1) * share)
        chosen = [dict(examples[number % total]) for number in numbers]
        prompt_ids, completions = self._sample_completions(
            [example["prompt"] for example in chosen],
            sampling,
            [seeds[number % total] for number in numbers],
            description=description,
        )
        self._fill_in_entropies(prompt_ids, completions, sampling)
        grades, metrics = self._grade(chosen, completions)
        local = [
            (
                graded_completion(
                    example,
                    completion,
                    {"reward": grade.reward, **grade.parts},
                    extra,
                    numbers=None
                    if completions_per_example is None
                    else divmod(number, completions_per_example),
                ),
                completion.token_ids,
            )
            for number, example, completion, grade, extra in zip(
                numbers, chosen, completions, grades, extra_columns(grades), strict=True
            )
        ]
        gathered = gather_object(local)[:total]
        rows, token_ids = (list(column) for column in zip(*gathered, strict=True))
        return GradedSample(rows, token_ids, self._means_of(metrics))

    @property
    def _forward_limits(self) -> MicroBatchLimits:
        """Of a forward without graph, for which there is more room than for a micro-batch."""
        return forward_limits(self._limits, self._memory)

    def _fill_in_entropies(
        self,
        prompt_ids: Sequence[list[int]],
        completions: Sequence[Completion],
        sampling: SamplingConfig,
    ) -> None:
        """Entropies of completions whose backend gives none, as vLLM's, by the policy itself.

        A collective call with equally many completions, and at least one, on each process.
        """
        if self.server is None or not self.args.completion_entropies:
            return
        self._make_room()
        device = self.accelerator.device
        sampled = [
            _Sampled(number, len(prompt) + len(completion.token_ids))
            for number, (prompt, completion) in enumerate(zip(prompt_ids, completions, strict=True))
        ]
        parts = cut_rows(sampled, self._forward_limits)
        # Weights that are shared out want equally many forwards of each process.
        count = torch.tensor([len(parts)], device=device)
        most = int(self.accelerator.gather(count).max().item())
        parts += [parts[-1][-1:]] * (most - len(parts))
        was_training = self.model.training
        self.model.eval()
        for part in parts:
            tensors = pad_and_shift(
                [prompt_ids[row.number] for row in part],
                [completions[row.number].token_ids for row in part],
                self._tokenizer.pad_token_id,
            )
            rows = PaddedRows(
                **{name: tensor.to(device) for name, tensor in tensors.items()},
                lengths=[row.num_tokens - 1 for row in part],
            )
            with torch.no_grad():
                output = self._log_probs(
                    self.model,
                    rows,
                    sampling.temperature or 1.0,  # greedy: of the model itself
                    return_token_entropy=True,
                    fused=False,  # its temperature is that of training
                )
            entropies_BT = output["token_entropy"].float().cpu()
            for row, entropy_T, mask_T in zip(
                part, entropies_BT, tensors["response_mask"], strict=True
            ):
                completions[row.number].entropies = entropy_T[mask_T].tolist()
        self.model.train(was_training)

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
            if not self.model.name_or_path:
                raise ValueError(
                    "vllm_server starts a server, but the model is an object that was loaded from "
                    "nowhere; save it to a folder, and give the trainer that"
                )
            reference = getattr(self, "ref_model", None)
            models = [self.model] if reference is None else [self.model, reference]
            server = place_own_server(args, self.accelerator, models)
        return ServerGeneration(
            self.model,
            self.accelerator,
            self._tokenizer,
            server,
            model_path=self.model.name_or_path,
            log_path=Path(args.output_dir or ".", "vllm_server.log"),
            group_port=args.vllm_group_port,
            request_timeout_seconds=args.vllm_request_timeout,
            timer=self.timer,
        )

    def _sync_server(self) -> None:
        """Give the server the current weights, unless it has them."""
        assert self.server is not None
        if self._synced_step == self.state.global_step:
            return
        probe = None
        if self._num_syncs < self.args.vllm_check_syncs:
            # The trainer's half of the check comes first, while a server on its device sleeps.
            self._make_room()
            probe = self._probe()
        self.server.sync_weights()
        self._synced_step = self.state.global_step
        if probe is not None:
            self.server.check_probe(*probe)
        self._num_syncs += 1

    def _make_room(self) -> None:
        """Let a server that sleeps do so, until it is to sample again."""
        if self.server is not None:
            self.server.release()

    @property
    def _server_parts(self) -> list[str]:
        """Parts of an update's time that there are with the server."""
        if self.server is None:
            return []
        return [
            "weight_sync",
            *(["server_sleep", "server_wake"] if self.server.sleep_level else []),
        ]

    def check_server(self) -> float:
        """Compare the server's and the trainer's log-probabilities of a probe, the first prompt.

        Returns:
            The mean absolute difference per token, in nats.

        Raises:
            VLLMServerError: It is above what the dtypes explain (`PROBE_TOLERANCES`).
        """
        if self.server is None:
            raise ValueError("there is no server to check: use_vllm is false")
        return self.server.check_probe(*self._probe())

    def _probe(self) -> tuple[list[int], Tensor, str]:
        """The first prompt, the policy's log-probabilities of it, and the dtype they are of."""
        (ids,) = self._prompt_ids([self.train_dataset[0]["prompt"]])
        tokens_1T = torch.tensor([ids], device=self.accelerator.device)
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            output = get_response_log_probs(self.model, tokens_1T[:, :-1], tokens_1T[:, 1:])
        self.model.train(was_training)
        computes_in = "bfloat16" if self.args.bf16 else "float16" if self.args.fp16 else None
        dtype = computes_in or str(self.model.dtype).removeprefix("torch.")
        # Autocast made copies of all matrices; the server may want their memory.
        clear_device_cache()
        return ids, output["log_probs"][0], dtype

    # Rewards

    _grade: GradeFn

    def _means_of(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The mean of each metric over the processes; a collective call."""
        device = self.accelerator.device
        return {
            name: self.accelerator.reduce(torch.tensor(value, device=device), "mean").item()
            for name, value in sorted(metrics.items())
        }
