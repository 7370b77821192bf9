"""The tokens of logged rollouts, for the page that colours them."""

import json
import math
from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from trl_r1zero.data.tokenization import decode_output
from trl_r1zero.generation import Completion

TOKENS_FOLDER = "tokens"  # beside the tables of answers, with files of their names
MOST_BYTES = 4  # of a character


def write_tokens(
    completions: Sequence[Completion], tokenizer: PreTrainedTokenizerBase, path: Path
) -> None:
    """Write JSON Lines beside a table of answers at `path`, one for each of its completions:
    `tokens`, a list of [text, log-probability, entropy], in nats as the sampler gave
    them, null where it gave none."""
    path = path.parent / TOKENS_FOLDER / path.name
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for one in completions:
            texts = token_texts(one.token_ids, tokenizer)
            values = zip(texts, _rounded(one.log_probs), _rounded(one.entropies), strict=False)
            file.write(json.dumps({"tokens": list(values)}, ensure_ascii=False) + "\n")


def token_texts(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each token; a character of several tokens is that of the last of them."""
    texts: list[str] = []
    before: list[int] = []
    pending: list[int] = []
    for token in token_ids:
        pending.append(token)
        text = decode_output(before, pending, tokenizer)
        if text.endswith("\ufffd") and len(pending) < MOST_BYTES:
            texts.append("")
        else:
            texts.append(text)
            before, pending = pending, []
    return texts


def _rounded(values: Sequence[float] | None) -> Iterable[float | None]:
    if values is None:
        return repeat(None)
    return [round(value, 3) if math.isfinite(value) else None for value in values]
