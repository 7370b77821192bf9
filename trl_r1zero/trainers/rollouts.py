"""A rollout batch as rows without padding, its train batches, and tensors of some of its rows.

Rows stay lists of token ids until a micro-batch is made of them, so a micro-batch is as wide as its
own longest row and no wider.

Shapes: B rows of a micro-batch, T its longest row minus one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from trl_r1zero.data.tokenization import pad_and_shift
from trl_r1zero.evaluation.summary import pass_at_k
from trl_r1zero.functional import zero_group_fraction
from trl_r1zero.generation import Completion
from trl_r1zero.rewards.registry import is_correct

from .microbatches import PaddedRows

LENGTH_REWARD = "length_reward"  # of DAPO's soft ramp, among the rewards of a rollout


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
        logged: Whether its tokens are written down; then `last_log_probs` are those of the policy
            before the last update on it, where a ratio to the old ones is computed.
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
    logged: bool = False
    last_log_probs: Tensor | None = None

    @property
    def training_reward(self) -> float:
        """What its advantage is made of: the reward, less what it loses for its length."""
        return self.rewards["reward"] + self.rewards.get(LENGTH_REWARD, 0.0)

    @property
    def has_gradient(self) -> bool:
        """Whether the policy gradient of its tokens can differ from 0."""
        return self.trained and self.advantage != 0

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion.token_ids)

    @property
    def length(self) -> int:
        return len(self.completion.token_ids)


@dataclass
class MicroBatch(PaddedRows):
    """Tensors of some rollouts.

    Attributes:
        rollouts: The rows.
        advantages: (B, 1).
        old_log_probs, ref_log_probs: (B, T), or None.
        sampler_log_probs: (B, T), what the completions' `log_probs` say, or None without them.
        num_sequences, num_tokens: Rows, and trained response tokens, of the train batch over all
            processes, divided by the number of processes: the denominators of `aggregate_loss`,
            such that the mean over processes is the loss of the whole train batch.
    """

    rollouts: list[Rollout]
    advantages: Tensor
    old_log_probs: Tensor | None
    ref_log_probs: Tensor | None
    sampler_log_probs: Tensor | None
    num_sequences: float
    num_tokens: float


@dataclass
class RolloutBatch:
    """A rollout batch of all processes: groups of `group_size` rollouts side by side.

    Attributes:
        rollouts: The rows, the same on every process.
        group_size: Rollouts per prompt.
        metrics: Numbers about the whole rollout batch, to be logged with each update on it.
        sampled_tokens: What it cost, if more was sampled for it than it has; else its own tokens.
    """

    rollouts: list[Rollout]
    group_size: int
    metrics: dict[str, float] = field(default_factory=dict)
    sampled_tokens: int = 0

    def __post_init__(self) -> None:
        self.sampled_tokens = self.sampled_tokens or sum(row.num_tokens for row in self.rollouts)

    def statistics(self) -> dict[str, float]:
        """`zero_advantage_groups`, the share of groups without any advantage; `pass@k` for k = 2,
        4, 8 ... up to the group's size, the chance that one of k completions is right; and, where
        they are known, `rollout_entropy`, the mean over all tokens in nats, `length_reward`, and
        the mean and maximum of `staleness` over rows."""
        advantages = torch.tensor([row.advantage for row in self.rollouts])
        statistics = {"zero_advantage_groups": zero_group_fraction(advantages, self.group_size)}
        rows = iter(self.rollouts)
        right = [
            sum(is_correct(row.rewards) for row in group)
            for group in zip(*[rows] * self.group_size, strict=True)
        ]
        k = 2
        while k <= self.group_size:
            chances = [pass_at_k(self.group_size, correct, k) for correct in right]
            statistics[f"pass@{k}"] = math.fsum(chances) / len(chances)
            k *= 2
        means = [(row.completion.mean_entropy, row.length) for row in self.rollouts]
        known = [(mean, length) for mean, length in means if mean is not None]
        tokens = sum(length for _, length in known)
        entropy = math.fsum(m * length for m, length in known) / tokens if tokens else math.nan
        if not math.isnan(entropy):
            statistics["rollout_entropy"] = entropy
        lost = [row.rewards[LENGTH_REWARD] for row in self.rollouts if LENGTH_REWARD in row.rewards]
        if lost:
            statistics[LENGTH_REWARD] = math.fsum(lost) / len(lost)
        ages = [age for row in self.rollouts if (age := row.completion.staleness) is not None]
        if ages:
            statistics |= {"staleness/mean": sum(ages) / len(ages), "staleness/max": max(ages)}
        return statistics

    def train_batch(self, index: int, num_train_batches: int) -> list[Rollout]:
        """The rows of train batch `index` of `num_train_batches` equal ones.

        Groups are dealt out like cards: group g goes to train batch g mod the number of train
        batches.
        """
        order = sorted(
            range(len(self.rollouts)),
            key=lambda row: (row // self.group_size) % num_train_batches,
        )
        size = len(order) // num_train_batches
        return [self.rollouts[row] for row in order[index * size : (index + 1) * size]]


def num_trained_tokens(rollouts: Sequence[Rollout]) -> int:
    """Response tokens that are part of the loss."""
    return sum(rollout.length for rollout in rollouts if rollout.trained)


def make_microbatch(
    rows: list[Rollout],
    *,
    pad_token_id: int,
    device: torch.device,
    num_sequences: float,
    num_tokens: float,
) -> MicroBatch:
    """Tensors of some rows, padded to their own longest."""
    tensors = pad_and_shift(
        [row.prompt_ids for row in rows],
        [row.completion.token_ids for row in rows],
        pad_token_id,
    )
    mask_BT = tensors["response_mask"]
    trained_B1 = torch.tensor([[row.trained] for row in rows])
    return MicroBatch(
        input_ids=tensors["input_ids"].to(device),
        labels=tensors["labels"].to(device),
        response_mask=(mask_BT & trained_B1).to(device),
        lengths=[row.num_tokens - 1 for row in rows],
        rollouts=rows,
        advantages=torch.tensor([[row.advantage] for row in rows], device=device),
        old_log_probs=_scatter([row.old_log_probs for row in rows], mask_BT, device),
        ref_log_probs=_scatter([row.ref_log_probs for row in rows], mask_BT, device),
        sampler_log_probs=_scatter([sampler_log_probs(row) for row in rows], mask_BT, device),
        num_sequences=num_sequences,
        num_tokens=num_tokens,
    )


def untrained(row: Rollout) -> Rollout:
    """A copy that is not in the loss, to fill up a process's micro-batches."""
    return replace(row, trained=False)


def store_log_probs(micro_batch: MicroBatch, log_probs: Tensor, attribute: str) -> None:
    """Keep (B, T) log-probabilities in an attribute of the rows, each as long as its completion."""
    for row, log_probs_T in zip(micro_batch.rollouts, log_probs.float().cpu(), strict=True):
        start = len(row.prompt_ids) - 1
        setattr(row, attribute, log_probs_T[start : start + row.length].clone())


def sampler_log_probs(row: Rollout) -> Tensor | None:
    """Log-probabilities of the completion's tokens as its sampler had them; None if unknown."""
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
