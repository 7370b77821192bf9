"""A rollout batch as rows without padding, and how it is cut into train and micro-batches.

Rows stay lists of token ids until a micro-batch is made of them, so a micro-batch is as wide as its
own longest row and no wider.

Shapes: B rows of a micro-batch, T its longest row minus one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from trl_r1zero.data.tokenization import pad_and_shift
from trl_r1zero.generation import Completion


@dataclass
class Rollout:
    """One completion of one prompt, graded.

    Attributes:
        prompt, ground_truth: The prompt's text, and what the answer is graded against.
        prompt_ids: Its tokens.
        completion: What was sampled.
        rewards: `reward` and, where the reward function reports them, its parts.
        advantage: What the policy gradient weighs the completion by.
        extra: What the reward functions say besides numbers, such as the `rule` that decided.
        trained: False if the completion is kept out of the loss (`mask_truncated_completions`).
        old_log_probs: Log-probabilities of the completion's tokens under the policy that sampled
            them, in nats; None if the batch is trained on once only (they are the policy's own).
        ref_log_probs: The same under the reference model; None without a KL term.
    """

    prompt: str
    ground_truth: Any
    prompt_ids: list[int]
    completion: Completion
    rewards: dict[str, float]
    advantage: float
    trained: bool = True
    extra: dict[str, Any] = field(default_factory=dict)
    old_log_probs: Tensor | None = None
    ref_log_probs: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion.token_ids)

    @property
    def length(self) -> int:
        return len(self.completion.token_ids)


@dataclass
class MicroBatch:
    """Padded tensors of some rollouts; see `pad_and_shift` for the convention.

    Attributes:
        rollouts: The rows.
        input_ids, labels, response_mask: (B, T).
        advantages, raw_rewards: (B, 1).
        old_log_probs, ref_log_probs: (B, T), or None.
        sampler_log_probs: (B, T), what the completions' `log_probs` say, or None without them.
        num_sequences, num_tokens: Rows, and trained response tokens, of the train batch over all
            processes, divided by the number of processes: the denominators of `aggregate_loss`,
            such that the mean over processes is the loss of the whole train batch.
    """

    rollouts: list[Rollout]
    input_ids: Tensor
    labels: Tensor
    response_mask: Tensor
    advantages: Tensor
    raw_rewards: Tensor
    old_log_probs: Tensor | None
    ref_log_probs: Tensor | None
    sampler_log_probs: Tensor | None
    num_sequences: float
    num_tokens: float


@dataclass
class RolloutBatch:
    """This process's share of a rollout batch: groups of `group_size` rollouts side by side.

    Attributes:
        rollouts: The rows.
        group_size: Rollouts per prompt.
        metrics: Numbers about the whole rollout batch, to be logged with each update on it.
    """

    rollouts: list[Rollout]
    group_size: int
    metrics: dict[str, float] = field(default_factory=dict)

    def train_batch(self, index: int, num_train_batches: int) -> list[Rollout]:
        """The rows of train batch `index` of `num_train_batches` equal ones.

        Groups are dealt out like cards (group g goes to train batch g mod the number of train
        batches), so that which groups are trained on together does not depend on the number of
        processes that share the rollout batch.
        """
        order = sorted(
            range(len(self.rollouts)),
            key=lambda row: (row // self.group_size) % num_train_batches,
        )
        size = len(order) // num_train_batches
        return [self.rollouts[row] for row in order[index * size : (index + 1) * size]]


class Row(Protocol):
    """What has a length."""

    @property
    def num_tokens(self) -> int: ...


R = TypeVar("R", bound=Row)


def longest_first(rows: Sequence[R], size: int) -> Iterator[list[R]]:
    """Rows sorted by length, cut into parts of `size` rows, the last one what is left.

    Sorting changes neither loss nor gradient, as the denominators are those of the train batch. The
    longest rows come first, so a run that does not fit into memory fails at once.
    """
    ordered = sorted(rows, key=lambda row: -row.num_tokens)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def num_trained_tokens(rollouts: Sequence[Rollout]) -> int:
    """Response tokens that are part of the loss."""
    return sum(rollout.length for rollout in rollouts if rollout.trained)


def cut_into_microbatches(
    rollouts: Sequence[Rollout],
    rows_per_microbatch: int,
    *,
    pad_token_id: int,
    device: torch.device,
    num_sequences: float,
    num_tokens: float,
) -> Iterator[MicroBatch]:
    """Micro-batches of `longest_first`, each padded to its own longest row."""
    for rows in longest_first(rollouts, rows_per_microbatch):
        tensors = pad_and_shift(
            [row.prompt_ids for row in rows],
            [row.completion.token_ids for row in rows],
            pad_token_id,
        )
        mask_BT = tensors["response_mask"]
        trained_B1 = torch.tensor([[row.trained] for row in rows])
        yield MicroBatch(
            rollouts=rows,
            input_ids=tensors["input_ids"].to(device),
            labels=tensors["labels"].to(device),
            response_mask=(mask_BT & trained_B1).to(device),
            advantages=torch.tensor([[row.advantage] for row in rows], device=device),
            raw_rewards=torch.tensor([[row.rewards["reward"]] for row in rows], device=device),
            old_log_probs=_scatter([row.old_log_probs for row in rows], mask_BT, device),
            ref_log_probs=_scatter([row.ref_log_probs for row in rows], mask_BT, device),
            sampler_log_probs=_scatter([_sampler_log_probs(row) for row in rows], mask_BT, device),
            num_sequences=num_sequences,
            num_tokens=num_tokens,
        )


def _sampler_log_probs(row: Rollout) -> Tensor | None:
    log_probs = row.completion.log_probs
    return None if log_probs is None else torch.tensor(log_probs, dtype=torch.float32)


def _scatter(values: list[Tensor | None], mask_BT: Tensor, device: torch.device) -> Tensor | None:
    """Values of response tokens, row by row, at their places in a (B, T) tensor; 0 elsewhere."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    if len(present) != len(values):
        raise ValueError(
            "some rows of a micro-batch have these log-probabilities and some have not"
        )
    result_BT = torch.zeros(mask_BT.shape, dtype=torch.float32)
    result_BT[mask_BT] = torch.cat(present)
    return result_BT.to(device)
