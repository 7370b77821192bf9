"""What to sample, what came back, and who samples: the same for every generation backend."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# What `min_tokens` is where nobody sets it: it yields to a shorter limit, another value does not.
DEFAULT_MIN_TOKENS = 4


@dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn. Names and meanings are vLLM's `SamplingParams`.

    Args:
        temperature: Logits are divided by it; 0 is greedy decoding.
        top_p: Nucleus: the smallest set of tokens whose probability reaches `top_p`; 1 is all.
        top_k: Only the `top_k` likeliest tokens; 0 is all.
        min_p: Only tokens with at least `min_p` times the likeliest token's probability; 0 is all.
        max_tokens: Completions end here at the latest (finish reason `length`).
        min_tokens: End-of-sequence tokens and stop strings count only after this many tokens; the
            default is no more than `max_tokens`.
        stop: What ends a completion: strings, which are kept in its text, and nothing after them
            is; and ids of tokens, which are not in the text.

    Raises:
        ValueError: A value is outside its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 1024
    min_tokens: int = DEFAULT_MIN_TOKENS
    stop: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        if self.min_tokens == DEFAULT_MIN_TOKENS > self.max_tokens:
            object.__setattr__(self, "min_tokens", max(self.max_tokens, 0))
        rules = {
            "temperature": (self.temperature >= 0, "at least 0 (0 is greedy)"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "top_k": (self.top_k >= 0, "at least 0 (0 is all tokens)"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1]"),
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "min_tokens": (0 <= self.min_tokens <= self.max_tokens, "between 0 and max_tokens"),
        }
        for name, (holds, allowed) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)}")
        if isinstance(self.stop, str) or not all(map(_is_stop, self.stop)):
            raise ValueError(
                f"stop must be a tuple of non-empty strings and token ids, got {self.stop!r}"
            )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return tuple(stop for stop in self.stop if isinstance(stop, str))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return tuple(stop for stop in self.stop if not isinstance(stop, str))


@dataclass
class Completion:
    """One sampled completion.

    Attributes:
        token_ids: The sampled tokens, the end-of-sequence token or the last token of the stop
            string included: exactly the tokens that training may touch.
        text: `token_ids` decoded without special and end tokens, cut behind the stop string.
        finish_reason: `stop` (end-of-sequence token or stop string) or `length` (truncated).
        log_probs: Log-probability of each token at the sampling temperature, in nats, before top-p,
            top-k and min-p (transformers) or after them (vLLM); None where the backend gives none.
        entropies: Entropy of the same distribution at each token, in nats; None likewise.
        staleness: How many steps of training lie between the weights that sampled the first token
            and those that it is there for; None where no weights change meanwhile.
    """

    token_ids: list[int]
    text: str
    finish_reason: Literal["stop", "length"]
    log_probs: list[float] | None = None
    entropies: list[float] | None = None
    staleness: int | None = None

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"

    @property
    def mean_entropy(self) -> float | None:
        return float(np.mean(self.entropies)) if self.entropies else None


class Engine(Protocol):
    """Samples completions: `TransformersEngine`, `VLLMServerEngine` or `OfflineVLLMEngine`."""

    @property
    def name(self) -> str:
        """What reports call it: `transformers`, `vllm-server` or `vllm`."""

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of the model behind it."""

    def stream(
        self, prompt_ids: Sequence[Sequence[int]], sampling: SamplingConfig, seeds: Sequence[int]
    ) -> Iterator[tuple[int, Completion]]:
        """Sample one completion for each prompt, and yield each as soon as it is complete.

        Args:
            prompt_ids: Token ids of each prompt; G times for G completions.
            sampling: How to sample.
            seeds: One seed for each prompt (see `row_seeds`).

        Yields:
            (row, completion): each row once, in any order.
        """

    def close(self) -> None:
        """Give back what the engine holds (a server that it started); harmless when repeated."""


def check_rows(
    prompt_ids: Sequence[Sequence[int]],
    seeds: Sequence[int],
    max_tokens: int = 0,
    max_model_len: float = math.inf,
) -> None:
    """What every engine wants of its rows; the context (`max_model_len` tokens) is limited.

    Raises:
        ValueError: There are not as many seeds as prompts, a prompt is empty, or a prompt and its
            `max_tokens` new tokens do not fit into the context.
    """
    if len(seeds) != len(prompt_ids):
        raise ValueError(
            f"got {len(prompt_ids)} prompts but {len(seeds)} seeds; give one for each prompt"
        )
    for row, ids in enumerate(prompt_ids):
        if len(ids) == 0:
            raise ValueError(
                f"prompt {row} has no tokens; a causal model needs at least one to go on from"
            )
        if len(ids) + max_tokens > max_model_len:
            raise ValueError(
                f"prompt {row} has {len(ids)} tokens, which with max_tokens {max_tokens} is more "
                f"than max_model_len {max_model_len}; shorten the prompt, lower max_tokens, or "
                "give vLLM a larger max_model_len (transformers: a model of a larger context)"
            )


def in_order(rows: Iterable[tuple[int, Completion]]) -> list[Completion]:
    """The completions of a stream, in the order of its prompts."""
    return [completion for _, completion in sorted(rows, key=lambda pair: pair[0])]


def _is_stop(value: object) -> bool:
    if isinstance(value, str):
        return value != ""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def cut_after_stop(text: str, stop: Sequence[str], start: int = 0) -> str | None:
    """`text` up to and with the first stop string that ends after `start`; None if there is none.

    `start` is a number of characters: a stop string that ends within them does not count (vLLM's
    rule for `min_tokens`).
    """
    ends = [
        found + len(s) for s in stop if (found := text.find(s, max(0, start - len(s) + 1))) >= 0
    ]
    return text[: min(ends)] if ends else None


def row_seeds(seed: int, stream: str, step: int, rows: Sequence[int]) -> list[int]:
    """One seed for each row: rows differ, and a row's seed does not depend on the other rows.

    Args:
        seed: The run's seed.
        stream: What the numbers are for (`rollout`, `validation`), so that streams are independent.
        step: The rollout step, or 0.
        rows: Global row numbers.
    """
    stream_id = int.from_bytes(stream.encode()[:8].ljust(8, b"\0"), "little")
    sequences = (np.random.SeedSequence([seed, stream_id, step, row]) for row in rows)
    return [int(one.generate_state(1, np.uint64)[0] >> 1) for one in sequences]
