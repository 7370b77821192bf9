"""Completions of the current policy, by transformers or by a vLLM server, and their grades."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from trl.distributed import DistributedBackend
from trl.models.utils import unwrap_model_for_generation

from trl_r1zero.data.tokenization import encode_prompts, pad_and_shift
from trl_r1zero.evaluation import GradedCompletion, graded_completion
from trl_r1zero.functional import get_response_log_probs
from trl_r1zero.generation import Completion, SamplingConfig, TransformersEngine, in_order

from .collective import means_of
from .memory_limits import DEFAULT_GENERATION_ROWS
from .microbatches import PaddedRows, cut_rows
from .policy_forward import PolicyForward
from .rewards import GradeFn, extra_columns
from .server_generation import ServerGeneration


@dataclass
class GradedSample:
    """Graded completions of all processes, in the order of their examples.

    Attributes:
        rows: The graded completions.
        completions: Each as it was sampled; the log-probabilities and entropies of tokens only of
            the first ones, as many as were asked for.
        metrics: What the reward functions logged, mean over processes.
    """

    rows: list[GradedCompletion]
    completions: list[Completion]
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Sampled:
    """A prompt with its completion: its number, its tokens, and how many both are."""

    number: int
    prompt_ids: list[int]
    num_tokens: int


@dataclass
class PolicySampler:
    """Samples completions of the current policy; collective calls, but for `prompt_ids`.

    Attributes:
        policy: The policy's forward passes.
        tokenizer: Its tokenizer.
        wrapped_model: The policy as the loop of transformers has wrapped it.
        num_updates: Optimizer updates so far: weights of another number are other weights.
        probe_prompt: The text of which a new server's log-probabilities are compared.
        rows_per_generation: Completions that transformers generates at a time; None where memory
            decides.
        server: The vLLM server that samples; None if transformers does.
    """

    policy: PolicyForward
    tokenizer: PreTrainedTokenizerBase
    wrapped_model: Callable[[], Any]
    num_updates: Callable[[], int]
    probe_prompt: Callable[[], str]
    rows_per_generation: int | None = None
    server: ServerGeneration | None = None

    def __post_init__(self) -> None:
        self._accelerator = self.policy.accelerator
        self._args = self.policy.args
        self._dist = DistributedBackend(self._accelerator)
        self._synced_at: int | None = None  # updates that the server's weights have seen
        self._num_syncs = 0
        if self.server is not None:
            self.policy.make_room = self.server.release
            self.server.num_updates = self.num_updates

    def prompt_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of formatted prompts; see `encode_prompts`."""
        return encode_prompts(prompts, self.tokenizer)

    def longest(self, prompts: Sequence[str]) -> int:
        """Tokens of the longest prompt; those of most characters are looked at."""
        return max(map(len, self.prompt_ids(sorted(prompts, key=len)[-64:])))

    def sample(
        self,
        prompts: Sequence[str],
        sampling: SamplingConfig,
        seeds: Sequence[int],
        description: str,
    ) -> tuple[list[list[int]], list[Completion]]:
        """Token ids of this process's prompts, and one completion for each; equally many on each.

        Args:
            prompts: Formatted prompts.
            sampling: How to sample.
            seeds: One for each.
            description: Of the progress bar.
        """
        prompt_ids = self.prompt_ids(prompts)
        show_progress = self._accelerator.is_main_process and not self._args.disable_tqdm
        if self.server is not None:
            self.sync_server()
            completions = self.server.sample(
                prompt_ids,
                sampling,
                list(seeds),
                description=description,
                show_progress=show_progress,
            )
            return prompt_ids, completions
        check_sharding(self._accelerator, self._args.ds3_gather_for_generation)
        batch_size = self.generation_rows(max(map(len, prompt_ids)) + sampling.max_tokens)
        with (
            unwrap_model_for_generation(
                self.wrapped_model(),
                self._accelerator,
                gather_deepspeed3_params=self._args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self._args.gradient_checkpointing_kwargs,
            ) as model,
            self._dist.summon_full_params(self.wrapped_model(), recurse=False),
            self._accelerator.autocast(),
        ):
            engine = TransformersEngine(model, self.tokenizer, batch_size=batch_size)
            rows = tqdm(
                engine.stream(prompt_ids, sampling, list(seeds)),
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

    def generation_rows(self, tokens: int) -> int:
        """Completions of so many tokens, with the prompt, that transformers generates at a time."""
        if self.rows_per_generation is not None:
            return self.rows_per_generation
        memory = self.policy.memory
        return DEFAULT_GENERATION_ROWS if memory is None else memory.generation_rows(tokens)

    def sample_and_grade(
        self,
        examples: Sequence[Mapping[str, Any]],
        sampling: SamplingConfig,
        seeds: Sequence[int],
        grade: GradeFn,
        *,
        completions_per_example: int | None = None,
        num_with_tokens: int = 0,
        description: str,
    ) -> GradedSample:
        """One graded completion for each of `examples`, shared among the processes.

        Args:
            examples: With `prompt` and `ground_truth`; the same on every process.
            sampling: How to sample.
            seeds: One for each example.
            grade: Grades them.
            completions_per_example: If the examples stand so often side by side, the rows are
                numbered: standard errors are then over different examples. None: each stands once.
            num_with_tokens: Of how many, from the first on, the numbers of each token are wanted.
            description: Of the progress bar.

        Returns:
            The same on every process.
        """
        total = len(examples)
        world, rank = self._accelerator.num_processes, self._accelerator.process_index
        # Every process takes equally many rows (the collectives of grading want that); the surplus
        # wraps around to the first rows and is dropped again below.
        share = -(-total // world)
        numbers = range(rank * share, (rank + 1) * share)
        chosen = [dict(examples[number % total]) for number in numbers]
        prompt_ids, completions = self.sample(
            [example["prompt"] for example in chosen],
            sampling,
            [seeds[number % total] for number in numbers],
            description,
        )
        self.fill_in_entropies(prompt_ids, completions, sampling)
        grades, metrics = grade(chosen, completions)
        local = []
        for number, example, completion, grade_of, extra in zip(
            numbers, chosen, completions, grades, extra_columns(grades), strict=True
        ):
            of_example = (
                None if completions_per_example is None else divmod(number, completions_per_example)
            )
            parts = {"reward": grade_of.reward, **grade_of.parts}
            row = graded_completion(example, completion, parts, extra, numbers=of_example)
            if number < num_with_tokens:
                local.append((row, completion))
            else:
                local.append((row, replace(completion, log_probs=None, entropies=None)))
        gathered = gather_object(local)[:total]
        rows, sampled = (list(column) for column in zip(*gathered, strict=True))
        return GradedSample(rows, sampled, means_of(metrics, self._accelerator))

    def fill_in_entropies(
        self,
        prompt_ids: Sequence[list[int]],
        completions: Sequence[Completion],
        sampling: SamplingConfig,
    ) -> None:
        """Entropies of completions whose backend gives none, as vLLM's, by the policy itself.

        A collective call with equally many completions, and at least one, on each process.
        """
        if self.server is None or not self._args.completion_entropies:
            return
        self.policy.make_room()
        sampled = [
            _Sampled(number, prompt, len(prompt) + len(completion.token_ids))
            for number, (prompt, completion) in enumerate(zip(prompt_ids, completions, strict=True))
        ]
        parts = cut_rows(sampled, self.policy.forward_limits)
        # Weights that are shared out want equally many forwards of each process.
        count = torch.tensor([len(parts)], device=self._accelerator.device)
        most = int(self._accelerator.gather(count).max().item())
        parts += [parts[-1][-1:]] * (most - len(parts))
        model = self.policy.model()
        was_training = model.training
        model.eval()
        for part in parts:
            numbers = [row.number for row in part]
            rows = self._padded(
                [prompt_ids[n] for n in numbers], [completions[n].token_ids for n in numbers]
            )
            with torch.no_grad():
                output = self.policy.log_probs(
                    model,
                    rows,
                    sampling.temperature or 1.0,  # greedy: of the model itself
                    return_token_entropy=True,
                    fused=False,  # its temperature is that of training
                )
            entropies_BT, mask_BT = output["token_entropy"].float().cpu(), rows.response_mask.cpu()
            for number, entropy_T, mask_T in zip(numbers, entropies_BT, mask_BT, strict=True):
                completions[number].entropies = entropy_T[mask_T].tolist()
        model.train(was_training)

    def _padded(
        self, prompt_ids: Sequence[list[int]], response_ids: Sequence[list[int]]
    ) -> PaddedRows:
        tensors = pad_and_shift(prompt_ids, response_ids, self.tokenizer.pad_token_id)
        lengths = [len(p) + len(r) - 1 for p, r in zip(prompt_ids, response_ids, strict=True)]
        device = self._accelerator.device
        return PaddedRows(**{name: t.to(device) for name, t in tensors.items()}, lengths=lengths)

    # The vLLM server

    def sync_server(self) -> None:
        """Give the server the current weights, unless it has them."""
        assert self.server is not None
        self.server.settle()  # rollouts that it was asked for ahead of time
        if self._synced_at == self.num_updates():
            return
        probe = None
        if self._num_syncs < self._args.vllm_check_syncs:
            # The trainer's half of the check comes first, while a server on its device sleeps.
            self.policy.make_room()
            probe = self._probe()
        self.server.sync_weights()
        self._synced_at = self.num_updates()
        if probe is not None:
            self.server.check_probe(*probe)
        self._num_syncs += 1

    def idle_shares(self) -> dict[str, float]:
        """Of the time since the last call: `trainer_idle_share`, in which the trainer waited for
        the server, and `server_idle_share`, in which that had no request; nothing without one."""
        return {} if self.server is None else self.server.clock.idle_shares()

    @property
    def timed_parts(self) -> list[str]:
        """Parts of an update's time that there are with the server."""
        if self.server is None:
            return []
        return ["weight_sync"] + ["server_sleep", "server_wake"] * bool(self.server.sleep_level)

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
        (ids,) = self.prompt_ids([self.probe_prompt()])
        tokens_1T = torch.tensor([ids], device=self._accelerator.device)
        model = self.policy.model()
        was_training = model.training
        model.eval()
        with torch.no_grad(), self._accelerator.autocast():
            output = get_response_log_probs(model, tokens_1T[:, :-1], tokens_1T[:, 1:])
        model.train(was_training)
        computes_in = "bfloat16" if self._args.bf16 else "float16" if self._args.fp16 else None
        dtype = computes_in or str(model.dtype).removeprefix("torch.")
        # Autocast made copies of all matrices; the server may want their memory.
        clear_device_cache()
        return ids, output["log_probs"][0], dtype


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
