"""The tokens of logged rollouts, for the page that colours them."""

import json
import math
from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from trl_r1zero.data.tokenization import decode_output
from trl_r1zero.generation import Completion

from .rollouts import Rollout

TOKENS_FOLDER = "tokens"  # beside the tables of answers, with files of their names
MOST_BYTES = 4  # of a character


def write_rollout_tokens(
    rollouts: Sequence[Rollout],
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    accelerator: Accelerator,
) -> None:
    """`write_tokens` of the rollouts that are logged, after the last update on them, with the ratio
    of the policy to the sampling one, where the loss had one; a collective call."""
    logged = [row for row in rollouts if row.logged]
    if not logged:
        return
    known = {
        number: (row.last_log_probs - row.old_log_probs).exp().tolist()
        for number, row in enumerate(logged)
        if row.last_log_probs is not None and row.old_log_probs is not None
    }
    gathered = gather_object([known]) if accelerator.num_processes > 1 else [known]
    ratios = {number: ratio for one in gathered for number, ratio in one.items()}
    if accelerator.is_main_process:
        completions = [row.completion for row in logged]
        of_rows = [ratios.get(number) for number in range(len(logged))] if ratios else None
        write_tokens(completions, tokenizer, path, of_rows)


def write_tokens(
    completions: Sequence[Completion],
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    ratios: Sequence[Sequence[float] | None] | None = None,
) -> None:
    """Write JSON Lines, one for each completion: `tokens`, a list of [text, log-probability,
    entropy], in nats as the sampler gave them, and of the ratio where there are ratios; null where
    one is not known.

    Args:
        completions: Those of the rows of a table of answers.
        tokenizer: Of the policy.
        path: Of that table.
        ratios: Of each completion's tokens, None for one that was not trained on.
    """
    path = path.parent / TOKENS_FOLDER / path.name
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number, one in enumerate(completions):
            texts = token_texts(one.token_ids, tokenizer)
            columns = [_rounded(one.log_probs), _rounded(one.entropies)]
            if ratios is not None:
                columns.append(_rounded(ratios[number]))
            values = zip(texts, *columns, strict=False)
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
