"""Where a completion ends, and what its text is: one rule for the sampled tokens of every backend.

A completion ends at the first end token, or at the first token that completes a stop string. That
token is kept as it was sampled, for training; the text ends right behind the stop string, which may
be in the middle of a token (`>` in `>\\n`), and is without the end token.
"""

import logging
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_r1zero.data.tokenization import decode_output

from .sampling import Completion, SamplingConfig, cut_after_stop

logger = logging.getLogger(__name__)
_NO_CHARACTER = "\ufffd"  # what bytes decode to that are no character, or not yet


class Endings:
    """The rule for one tokenizer and one way of sampling.

    Args:
        tokenizer: Of the model.
        sampling: With its stop strings and tokens. A stop string that is a special token, which
            decoding leaves out, counts as that token, and is kept in the text all the same.
        end_token_ids: The model's end tokens; the tokenizer's own by default.

    Attributes:
        end_token_ids: All tokens that end a completion, sorted.
        sampling: The same, with all of them among its `stop`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sampling: SamplingConfig,
        end_token_ids: Iterable[int] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._min_tokens = sampling.min_tokens
        added = tokenizer.get_added_vocab()
        special = {s for s in sampling.stop_strings if s in added and not self.text((), [added[s]])}
        self._stop = [string for string in sampling.stop_strings if string not in special]
        self._kept = {added[string]: string for string in special}
        if end_token_ids is None:
            end_token_ids = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self.end_token_ids = sorted({*end_token_ids, *sampling.stop_token_ids, *self._kept})
        self.sampling = replace(sampling, stop=(*sampling.stop_strings, *self.end_token_ids))
        self._may_complete: dict[int, bool] = {}

    def text(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> str:
        """Sampled tokens as text (see `decode_output`), without special tokens, and without the
        bytes of an unfinished character at the end."""
        return decode_output(
            prompt_ids, token_ids, self._tokenizer, skip_special_tokens=True
        ).rstrip(_NO_CHARACTER)

    def text_if_ended(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> str | None:
        """The text if the last token ends the completion, which no token before it did."""
        newest = token_ids[-1]
        if newest in self.end_token_ids:
            return self.text(prompt_ids, token_ids[:-1]) + self._kept.get(newest, "")
        if not self._stop or len(token_ids) <= self._min_tokens or not self._can_end(newest):
            return None
        return self._cut(prompt_ids, token_ids)

    def completion(
        self,
        prompt_ids: Sequence[int],
        token_ids: Sequence[int],
        log_probs: Sequence[float] | None = None,
        reason: tuple[str, int | str | None] = ("length", None),
    ) -> Completion:
        """The completion that these tokens are, or begin with.

        Args:
            prompt_ids: Token ids of the prompt.
            token_ids: What was sampled, perhaps beyond the end; at least one token.
            log_probs: Of each token.
            reason: vLLM's `finish_reason` and `stop_reason`: it may know further end tokens.
        """
        ends = (n for n, token in enumerate(token_ids, 1) if token in self.end_token_ids)
        by_token = reason[0] == "stop" and not isinstance(reason[1], str)
        size = next(ends, len(token_ids) if by_token else 0)  # with the end token; 0: there is none
        body = token_ids[: size - 1] if size else token_ids

        def cut(number: int) -> str | None:
            return self._cut(prompt_ids, body[:number])

        text = cut(len(body)) if self._stop else None
        if text is None:
            text = self.text(prompt_ids, body) + self._kept.get(token_ids[size - 1], "") * (
                size > 0
            )
        elif cut(len(body) - 1) is None:  # the last token ends it, as with vLLM it always does
            size = len(body)
        else:
            size = bisect_left(range(len(body)), True, key=lambda n: cut(n) is not None)
        kept = size or len(token_ids)
        return Completion(
            token_ids=list(token_ids[:kept]),
            text=text,
            finish_reason="stop" if size or reason[0] == "stop" else "length",
            log_probs=None if log_probs is None else list(log_probs[:kept]),
        )

    def _cut(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> str | None:
        """The text up to and with the first stop string that counts, None if there is none."""
        if len(token_ids) <= self._min_tokens:
            return None
        ignored = self.text(prompt_ids, token_ids[: self._min_tokens])
        return cut_after_stop(self.text(prompt_ids, token_ids), self._stop, start=len(ignored))

    def _can_end(self, token: int) -> bool:
        """Whether a token may complete a stop string: its text has the last character of one."""
        if token not in self._may_complete:
            piece = decode_output([token], [token], self._tokenizer)
            last = {_NO_CHARACTER, *(string[-1] for string in self._stop)}
            self._may_complete[token] = not last.isdisjoint(piece)
        return self._may_complete[token]


def configured_end_ids(*configs: Any) -> list[int]:
    """The end tokens of a model's config and generation config (either may be None), each once."""
    given = (getattr(config, "eos_token_id", None) for config in configs)
    lists = ([ids] if isinstance(ids, int) else list(ids or []) for ids in given)
    return list(dict.fromkeys(chain.from_iterable(lists)))


def eos_disagreement(tokenizer: PreTrainedTokenizerBase, *configs: Any) -> str | None:
    """What to tell people if a model does not end at the eos token of its tokenizer; None if it
    does, or if one of the two has none.

    Such a token ends completions all the same, and responses that are trained on, as it is the
    tokenizer's; the model, before training, never gives it.
    """
    known, eos = configured_end_ids(*configs), tokenizer.eos_token_id
    if not known or eos is None or eos in known:
        return None
    names = [tokenizer.convert_ids_to_tokens(token) for token in known]
    return (
        f"the tokenizer's eos token is {tokenizer.eos_token!r} ({eos}), but the model's config "
        f"says {', '.join(f'{n!r} ({i})' for n, i in zip(names, known, strict=True))}; set "
        "eos_token in tokenizer_config.json to what the model was trained to end with, or "
        "eos_token_id in config.json and generation_config.json"
    )


def warn_of_eos(tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    """Log what `eos_disagreement` says of a model."""
    message = eos_disagreement(tokenizer, model.config, getattr(model, "generation_config", None))
    if message is not None:
        logger.warning(message)
