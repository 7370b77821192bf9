"""Models with random weights, and rollout batches for them that were sampled by nobody.

Speed depends on shapes alone: on lengths, and on which groups have an advantage. Both are drawn
here from distributions that are stated, and the tokens are random, except for the tiny model, whose
prompts and responses are those of the embedded task.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
)

from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks.chain_arithmetic import ChainArithmeticTask, TraceNoise, noisy_trace


@dataclass(frozen=True)
class ModelShape:
    """A Qwen2 with tied embeddings; `vocabulary_size` None is the tokenizer's."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    vocabulary_size: int | None


@dataclass(frozen=True)
class LengthDistribution:
    """Tokens of prompts, uniform, and of completions, log-normal and clipped.

    Attributes:
        prompt: Smallest and largest number of tokens.
        completion: The same; the clipped tail piles up at the largest, as truncated samples do.
        median, sigma: Of the completions before clipping; sigma is that of the logarithm.
    """

    prompt: tuple[int, int]
    completion: tuple[int, int]
    median: float
    sigma: float


@dataclass(frozen=True)
class Workload:
    """A model's shape, and what its rollouts look like; `lengths` None is the embedded task's."""

    shape: ModelShape
    lengths: LengthDistribution | None
    num_rollouts: int
    max_completion_length: int
    # Rows of a micro-batch that are tried.
    rows: tuple[int, ...]


WORKLOADS = {
    # The quickstart's model and batch.
    "tiny": Workload(
        shape=ModelShape(128, 384, 3, 4, 2, None),
        lengths=None,
        num_rollouts=256,
        max_completion_length=64,
        rows=(32, 64, 128),
    ),
    "28m": Workload(
        shape=ModelShape(512, 1408, 8, 8, 4, 8192),
        lengths=LengthDistribution((40, 120), (50, 512), median=150, sigma=0.7),
        num_rollouts=64,
        max_completion_length=512,
        rows=(4, 8, 16),
    ),
    "qwen2.5-math-1.5b": Workload(
        shape=ModelShape(1536, 8960, 28, 12, 2, 151936),
        lengths=LengthDistribution((100, 300), (64, 1024), median=400, sigma=0.6),
        num_rollouts=256,
        max_completion_length=1024,
        rows=(4, 8, 16, 32),
    ),
}


@dataclass(frozen=True)
class StoredBatch:
    """A rollout batch of N rows, groups of `group_size` side by side.

    Attributes:
        prompt_ids, completion_ids: N lists of token ids.
        rewards: N rewards, 0 or 1.
        group_size: Rows per prompt.
    """

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    rewards: list[float]
    group_size: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, prompt and completion."""
        return [
            len(prompt) + len(completion)
            for prompt, completion in zip(self.prompt_ids, self.completion_ids, strict=True)
        ]

    @property
    def groups(self) -> list[list[float]]:
        size = self.group_size
        return [self.rewards[i : i + size] for i in range(0, len(self.rewards), size)]

    @property
    def has_advantage(self) -> list[bool]:
        """For each row, whether the rewards of its group differ."""
        return [len(set(group)) > 1 for group in self.groups for _ in group]

    @property
    def zero_advantage_share(self) -> float:
        """Share of the groups whose rows are all right or all wrong."""
        return sum(len(set(group)) == 1 for group in self.groups) / len(self.groups)

    @property
    def batch_padding_share(self) -> float:
        """Share of padding if all rows are padded to the batch's longest prompt and completion."""
        width = max(map(len, self.prompt_ids)) + max(map(len, self.completion_ids))
        return 1 - sum(self.lengths) / (width * len(self.lengths))


def make_model(
    shape: ModelShape, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, attention: str
) -> PreTrainedModel:
    """An untrained model; the same weights at each call."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=shape.vocabulary_size or len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)


def draw_batch(
    workload: Workload,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_rollouts: int,
    group_size: int,
    accuracy: float,
    concentration: float,
    seed: int,
) -> StoredBatch:
    """A rollout batch in which at least one group has an advantage (others have no gradient).

    Args:
        workload: Lengths and vocabulary.
        tokenizer: Of the tiny model; to the others it only lends its end and padding tokens.
        num_rollouts: Rows, a multiple of `group_size`.
        group_size: Rows per prompt.
        accuracy: Mean probability of a right answer.
        concentration: a + b of the Beta distribution of the questions' probabilities, see
            `draw_rewards`.
        seed: Of everything that is drawn.
    """
    rng = np.random.default_rng(seed)
    num_groups = num_rollouts // group_size
    rewards = draw_rewards(rng, num_groups, group_size, accuracy, concentration)
    if workload.lengths is None:
        prompts, completions = _embedded_task(tokenizer, num_groups, group_size, seed)
    else:
        vocabulary = workload.shape.vocabulary_size or len(tokenizer)
        specials = [tokenizer.eos_token_id, tokenizer.pad_token_id]
        usable = np.setdiff1d(np.arange(vocabulary), specials)
        lengths = workload.lengths
        prompts = [
            rng.choice(usable, n).tolist()
            for n in rng.integers(*lengths.prompt, num_groups, endpoint=True)
        ]
        drawn = rng.lognormal(np.log(lengths.median), lengths.sigma, num_rollouts)
        clipped = np.clip(np.rint(drawn), *lengths.completion).astype(int)
        completions = [rng.choice(usable, n).tolist() for n in clipped]
    repeated = [prompt for prompt in prompts for _ in range(group_size)]
    return StoredBatch(repeated, completions, rewards, group_size)


def draw_rewards(
    rng: np.random.Generator,
    num_groups: int,
    group_size: int,
    accuracy: float,
    concentration: float,
) -> list[float]:
    """Rewards of 0 and 1: questions are of different difficulty, so many groups are all alike.

    A question's probability of a right answer is one of Beta(a, b) with mean `accuracy` and
    a + b = `concentration`: near 0, each question is always or never answered; large, all are
    alike. Of groups of eight, 1.0 leaves 39% at accuracy 0.5 and 77% at 0.1 or 0.9 without an
    advantage, in the limit of many groups.

    The questions of a batch stand at equally spaced quantiles of that distribution, so that a small
    batch is like a large one. Batches whose groups are all alike are drawn again.
    """
    if not 0 < accuracy < 1:
        raise ValueError(f"accuracy must be between 0 and 1, got {accuracy}")
    if not concentration > 0:
        raise ValueError(f"concentration must be above 0, got {concentration}")
    sample = rng.beta(accuracy * concentration, (1 - accuracy) * concentration, 100_000)
    quantiles = (np.arange(num_groups) + 0.5) / num_groups
    right_NG = np.zeros((num_groups, group_size), dtype=bool)
    while (right_NG == right_NG[:, :1]).all():
        probabilities_N = rng.permutation(np.quantile(sample, quantiles))
        right_NG = rng.random((num_groups, group_size)) < probabilities_N[:, None]
    return right_NG.astype(float).flatten().tolist()


def _embedded_task(
    tokenizer: PreTrainedTokenizerBase, num_groups: int, group_size: int, seed: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of the embedded task, and responses such as the quickstart's base policy gives."""
    rng = random.Random(seed)
    examples = rng.sample(ChainArithmeticTask(num_train=1024).load(split="train"), num_groups)
    prompt = load_prompt("chain_arithmetic")
    prompts = [prompt.format(example.question) for example in examples]
    responses = [
        noisy_trace(example.question, rng, TraceNoise())
        for example in examples
        for _ in range(group_size)
    ]
    return tokenizer(prompts)["input_ids"], tokenizer(responses)["input_ids"]


def training_flops(shape: ModelShape, num_parameters: int, lengths: Sequence[int]) -> float:
    """Floating-point operations of forward and backward over rows of so many tokens.

    6 N T for the weights, with tied embeddings counted once (as the head), and for causal attention
    6 L T^2 d: scores and weighted sums are 4 T^2 d operations a layer, half of them under the
    diagonal, and backward takes twice what forward does (Chowdhery et al. 2022, appendix B).
    """
    attention = 6 * shape.num_layers * shape.hidden_size
    return float(sum(6 * num_parameters * t + attention * t * t for t in lengths))
