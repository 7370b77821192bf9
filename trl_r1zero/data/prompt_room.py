"""What the context leaves for prompts: a config and a tokenizer tell, before a model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from trl_r1zero.data.bad_rows import BadRowError, BadRows

T = TypeVar("T")

# Special tokens that a tokenizer may put before a prompt.
_MOST_SPECIAL_TOKENS = 16
_SCALED_AFTERWARDS = ("linear", "dynamic")  # other kinds of RoPE say the scaled context


def context_length(config: Any) -> int | None:
    """Tokens of the longest text that a model is made for; None if its config does not say it.

    Source: vLLM's rules for `max_model_len` (`_get_and_verify_max_len`), as far as the config says.
    """
    text_config = config.get_text_config()
    positions = getattr(text_config, "max_position_embeddings", None)
    if not positions or positions < 0:
        return None
    rope = getattr(text_config, "rope_parameters", None) or {}
    kinds = [kind for kind in (rope, *rope.values()) if isinstance(kind, dict)]
    scaled = [kind for kind in kinds if kind.get("rope_type") in _SCALED_AFTERWARDS]
    return int(positions * max((kind.get("factor") or 1.0 for kind in scaled), default=1.0))


def context_of(
    config: Any, tokenizer: Any, *, vllm: bool, max_model_len: int | None = None
) -> tuple[int | None, str]:
    """Tokens of a prompt and its completion at most (None: no bound is known), and what says so: of
    a model whose config may not be known, sampled from by vLLM or transformers, with vLLM's setting
    `max_model_len` (None, or below 1: left to vLLM)."""
    if vllm and max_model_len is not None and max_model_len > 0:
        return max_model_len, "max_model_len"
    context = None if config is None else context_length(config)
    if vllm and context is not None and tokenizer.model_max_length < context:
        return tokenizer.model_max_length, "the tokenizer's model_max_length"
    return context, "the model's max_position_embeddings"


@dataclass(frozen=True)
class PromptRoom:
    """A bound on the prompts of a data set."""

    tokenizer: Any  # of the model
    context: int  # tokens of a prompt and its completion together, at most
    limit: str  # what says so; see `context_of`
    new_tokens: int  # of a completion, at most
    setting: str  # what says so, such as `max_tokens`
    first: int | None = None  # only the first so many prompts are used. None: all.

    def too_long(self, prompts: Sequence[str]) -> dict[int, int]:
        """Number of each prompt that leaves no room -> its tokens, the longest first."""
        room = self.context - self.new_tokens
        # A token is at least one byte of the text, so short texts need not be tokenised.
        bytes_that_fit = room - _MOST_SPECIAL_TOKENS
        doubtful = [n for n, text in enumerate(prompts) if len(text.encode()) > bytes_that_fit]
        if not doubtful:
            return {}
        # Imported here: it imports torch, which the arguments of a recipe do without.
        from trl_r1zero.data.tokenization import encode_prompts

        encoded = encode_prompts([prompts[n] for n in doubtful], self.tokenizer)
        tokens = {n: len(ids) for n, ids in zip(doubtful, encoded, strict=True) if len(ids) > room}
        return dict(sorted(tokens.items(), key=lambda pair: -pair[1]))

    def keep(self, rows: Sequence[T], prompts: Sequence[str], bad_rows: BadRows) -> list[T]:
        """Returns the rows (with `where` they came from) whose formatted prompts leave room, and
        adds the others to the bad ones."""
        # Examples that a task generates were not counted while they were read.
        bad_rows.read = max(bad_rows.read, len(rows) + len(bad_rows.errors))
        long = self.too_long(prompts)
        used, fitting = range(len(rows)), [n for n in range(len(rows)) if n not in long]
        if self.first is not None and self.first <= len(fitting):
            used = range(fitting[self.first - 1] + 1)
        for number, tokens in long.items():
            if number in used:
                where = getattr(rows[number], "where", "") or f"example {number}"
                bad_rows.errors.append(BadRowError(where, self._problem(tokens), self._reason))
        return [row for n, row in enumerate(rows) if n not in long or n not in used]

    def check(self, name: str, prompts: Sequence[str]) -> None:
        """Raise a ValueError if one of the prompts that are used leaves no room."""
        prompts = prompts[: self.first]
        if long := self.too_long(prompts):
            row, tokens = next(iter(long.items()))
            raise ValueError(
                f"{name}: {len(long):,} of {len(prompts):,} prompts leave {self._reason}; the "
                f"longest, row {row}: {self._problem(tokens)}, or leave such rows out (a recipe "
                "does by on_bad_row: skip)"
            )

    @property
    def _reason(self) -> str:
        return f"no room in the context for {self.new_tokens:,} new tokens"

    def _problem(self, tokens: int) -> str:
        larger = "raise it" if self.limit == "max_model_len" else "take a model of a larger context"
        return (
            f"a prompt of {tokens:,} tokens and {self.setting} {self.new_tokens:,} are more than "
            f"{self.limit} {self.context:,}; lower {self.setting}, or {larger}"
        )
