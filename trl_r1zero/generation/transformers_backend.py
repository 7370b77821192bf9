"""Sampling from a transformers causal language model, with working stop strings.

It is the backend for CPUs, tests and small models; vLLM is the one for speed. What it adds to
`model.generate`, and why it is a loop of its own:

* stop strings end a row at the token that completes them, `min_tokens` is honoured, and the finish
  reason is known;
* each row draws from its own random stream (`row_seeds`), so a row's completion depends neither on
  the other rows nor on how many processes share the batch;
* rows that are finished leave the batch, so a long row does not make all others run on;
* log-probabilities and entropies come for free, as the trainer needs them: at the sampling
  temperature, before top-p, top-k and min-p;
* the model's own generation config (Qwen's ships a repetition penalty) has no say.

Shapes: B rows still running, T prompt positions, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .sampling import Completion, SamplingConfig, check_rows, cut_after_stop, in_order

# Finished rows leave once they are this share of the batch: copying the cache costs about as much
# as one step, so leaving one by one would not pay.
_COMPACT_SHARE = 0.2


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    seeds: Sequence[int],
    *,
    eos_token_ids: Sequence[int] | None = None,
    batch_size: int | None = None,
) -> list[Completion]:
    """Sample one completion for each prompt; see `stream` for arguments and errors.

    Returns:
        The completions, in the order of the prompts.
    """
    rows = stream(
        model,
        tokenizer,
        prompt_ids,
        sampling,
        seeds,
        eos_token_ids=eos_token_ids,
        batch_size=batch_size,
    )
    return in_order(rows)


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    seeds: Sequence[int],
    *,
    eos_token_ids: Sequence[int] | None = None,
    batch_size: int | None = None,
) -> Iterator[tuple[int, Completion]]:
    """Sample one completion for each prompt, and yield each as soon as it is complete.

    Args:
        model: A causal language model; it is called as it is (no change of train/eval mode).
        tokenizer: Decodes the completions; its `pad_token_id` pads the prompts on the left.
        prompt_ids: Token ids of each prompt, none empty. A prompt that wants G completions is given
            G times.
        sampling: How to sample.
        seeds: One seed for each prompt (see `row_seeds`); not used by greedy decoding.
        eos_token_ids: Tokens that end a completion; the tokenizer's own by default.
        batch_size: At most this many rows at a time; all by default.

    Yields:
        (row, completion): each row once, in the order in which they end.

    Raises:
        ValueError: A prompt is empty, the number of seeds is wrong, or there is no pad token.
    """
    check_rows(prompt_ids, seeds)
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "the tokenizer has no pad token; set tokenizer.pad_token (the eos token will do)"
        )
    if eos_token_ids is None:
        eos_token_ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    batch_size = batch_size or max(len(prompt_ids), 1)
    for start in range(0, len(prompt_ids), batch_size):
        rows = slice(start, start + batch_size)
        batch = _stream_batch(
            model, tokenizer, prompt_ids[rows], sampling, seeds[rows], list(eos_token_ids)
        )
        for row, completion in batch:
            yield start + row, completion


@torch.no_grad()
def _stream_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    seeds: Sequence[int],
    eos_token_ids: list[int],
) -> Iterator[tuple[int, Completion]]:
    device = model.device
    stops = _StopDetector(tokenizer, sampling, eos_token_ids)
    filters = _probability_filters(sampling)
    uniforms = torch.tensor(  # (rows, max_tokens), one stream for each row
        np.stack([np.random.default_rng(seed).random(sampling.max_tokens) for seed in seeds]),
        dtype=_cumulative_dtype(device),
        device=device,
    )
    width = max(len(ids) for ids in prompt_ids)
    input_ids = torch.full((len(prompt_ids), width), tokenizer.pad_token_id)
    attention_mask_BT = torch.zeros((len(prompt_ids), width), dtype=torch.long)
    for row, ids in enumerate(prompt_ids):
        input_ids[row, width - len(ids) :] = torch.tensor(ids)
        attention_mask_BT[row, width - len(ids) :] = 1
    input_ids, attention_mask_BT = input_ids.to(device), attention_mask_BT.to(device)
    position_ids = (attention_mask_BT.cumsum(-1) - 1).clamp(min=0)

    cache = DynamicCache(config=model.config)
    running = torch.arange(len(prompt_ids), device=device)  # (B,) the row at each batch position
    tokens: list[list[int]] = [[] for _ in prompt_ids]
    log_probs: list[list[float]] = [[] for _ in prompt_ids]
    entropies: list[list[float]] = [[] for _ in prompt_ids]
    done = [False] * len(prompt_ids)

    for step in range(sampling.max_tokens):
        logits_BV = (
            model(
                input_ids=input_ids,
                attention_mask=attention_mask_BT,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            .logits[:, -1]
            .float()
        )
        if step < sampling.min_tokens:
            logits_BV[:, eos_token_ids] = -torch.inf
        token_B, log_prob_B, entropy_B = _sample(
            logits_BV, sampling, filters, uniforms[running, step]
        )
        rows, new_tokens = running.tolist(), token_B.tolist()
        for row, token, log_prob, entropy in zip(
            rows, new_tokens, log_prob_B.tolist(), entropy_B.tolist(), strict=True
        ):
            if done[row]:
                continue
            tokens[row].append(token)
            log_probs[row].append(log_prob)
            entropies[row].append(entropy)
            text = stops.text_if_stopped(tokens[row], token)
            if text is not None:
                done[row] = True
                yield row, Completion(tokens[row], text, "stop", log_probs[row], entropies[row])
        if all(done):
            return
        input_ids = token_B.unsqueeze(1)
        position_ids = position_ids[:, -1:] + 1
        attention_mask_BT = torch.nn.functional.pad(attention_mask_BT, (0, 1), value=1)
        keep = [position for position, row in enumerate(rows) if not done[row]]
        if len(rows) - len(keep) >= _COMPACT_SHARE * len(rows):
            kept = torch.tensor(keep, device=device)
            cache.batch_select_indices(kept)
            input_ids, position_ids, running = input_ids[kept], position_ids[kept], running[kept]
            attention_mask_BT = attention_mask_BT[kept]

    for row in range(len(prompt_ids)):
        if not done[row]:
            text = _decode(tokenizer, tokens[row])
            yield row, Completion(tokens[row], text, "length", log_probs[row], entropies[row])


def _decode(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=True))


def _probability_filters(sampling: SamplingConfig) -> LogitsProcessorList:
    filters = LogitsProcessorList()
    if sampling.top_k > 0:
        filters.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        filters.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0.0:
        filters.append(MinPLogitsWarper(sampling.min_p))
    return filters


def _cumulative_dtype(device: torch.device) -> torch.dtype:
    # 150,000 probabilities summed up in float32 lose the tail; Apple's GPUs have nothing wider.
    return torch.float32 if device.type == "mps" else torch.float64


def _sample(
    logits_BV: Tensor, sampling: SamplingConfig, filters: LogitsProcessorList, uniform_B: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, their log-probabilities and the entropies, each (B,).

    The token is the inverse of the cumulative distribution at `uniform_B`: one random number a
    token, whatever the vocabulary.
    """
    greedy = sampling.temperature == 0
    scores_BV = logits_BV if greedy else logits_BV / sampling.temperature
    log_probs_BV = scores_BV.log_softmax(-1)
    probs_BV = log_probs_BV.exp()
    # 0 * -inf is NaN where a token is forbidden; its term is 0.
    entropy_B = -torch.where(probs_BV > 0, probs_BV * log_probs_BV, 0.0).sum(-1)
    if greedy:
        token_B = scores_BV.argmax(-1)
    else:
        if filters:
            probs_BV = filters(None, scores_BV).softmax(-1)  # type: ignore[arg-type]
        cumulative_BV = probs_BV.cumsum(-1, dtype=uniform_B.dtype)
        target_B1 = (uniform_B * cumulative_BV[:, -1]).unsqueeze(1)
        token_B = torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(1)
        token_B = token_B.clamp(max=probs_BV.shape[1] - 1)
    return token_B, log_probs_BV.gather(1, token_B.unsqueeze(1)).squeeze(1), entropy_B


class _StopDetector:
    """Says whether the newest token of a row ends it, and with what text.

    Only a token that contains the last character of a stop string can complete one, so a row is
    decoded only at such tokens.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, sampling: SamplingConfig, eos_token_ids: list[int]
    ) -> None:
        self.tokenizer = tokenizer
        self.eos_token_ids = set(eos_token_ids)
        self.stop = sampling.stop
        self.min_tokens = sampling.min_tokens
        self._may_complete: dict[int, bool] = {}

    def text_if_stopped(self, token_ids: list[int], newest: int) -> str | None:
        if newest in self.eos_token_ids:
            return _decode(self.tokenizer, token_ids)
        if not self.stop or len(token_ids) <= self.min_tokens:
            return None
        if newest not in self._may_complete:
            piece = self.tokenizer.decode([newest])
            # A piece of a multi-byte character decodes to U+FFFD: it may be any character's end.
            self._may_complete[newest] = "\ufffd" in piece or any(s[-1] in piece for s in self.stop)
        if not self._may_complete[newest]:
            return None
        ignored = _decode(self.tokenizer, token_ids[: self.min_tokens])
        text = _decode(self.tokenizer, token_ids)
        return cut_after_stop(text, self.stop, start=len(ignored))
