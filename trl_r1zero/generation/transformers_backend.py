"""Sampling from a transformers causal language model, with working stop strings.

It is the backend for CPUs, tests and small models; vLLM is the one for speed. Why it is a loop of
its own, and not `model.generate`:

* stop strings end a row at the token that completes them, `min_tokens` is honoured, and the finish
  reason is known;
* each row draws from its own random stream (`row_seeds`), so a row's completion depends neither on
  the other rows nor on how many processes share the batch;
* rows that are finished leave the batch, and others take their place: a long row does not make all
  run on (`decode_batch`, which says what else makes it fast);
* log-probabilities and entropies come for free, as the trainer needs them: at the sampling
  temperature, before top-p, top-k and min-p;
* the model's own generation config (Qwen's ships a repetition penalty) has no say.

Shapes: B rows, V vocabulary.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trl_r1zero.data.prompt_room import context_length
from trl_r1zero.functional.log_probs import chunk_elements

from .decode_batch import DecodeBatch
from .endings import Endings, configured_end_ids
from .sampling import Completion, SamplingConfig, check_rows, in_order

# Rows that have ended leave once they are this share of the batch: copying the cache costs about as
# much as one step, so leaving one by one would not pay.
_LEAVING_SHARE = 0.2
# Its exponential is 0.
_LOWEST_LOG_PROB = -1e30


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
    """Sample one completion for each prompt.

    Args:
        model: A causal language model; it is called as it is (no change of train/eval mode).
        tokenizer: Decodes the completions; its `pad_token_id` pads shorter prompts.
        prompt_ids: Token ids of each prompt, none empty. A prompt that wants G completions is given
            G times.
        sampling: How to sample.
        seeds: One seed for each prompt (see `row_seeds`); not used by greedy decoding.
        eos_token_ids: Tokens that end a completion; the tokenizer's own by default.
        batch_size: At most this many rows at a time; all by default.

    Returns:
        The completions, in the order of the prompts.

    Raises:
        ValueError: A prompt is empty or fills the model's context, the number of seeds is wrong, or
            there is no pad token.
    """
    if eos_token_ids is None:
        eos_token_ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    engine = TransformersEngine(
        model, tokenizer, eos_token_ids=eos_token_ids, batch_size=batch_size
    )
    return in_order(engine._stream(prompt_ids, sampling, seeds))


def _context(model: PreTrainedModel) -> float:
    """Tokens of a text at most, as far as the model says; rotary models go on behind them."""
    config = getattr(model, "config", None)
    known = context_length(config) if isinstance(config, PretrainedConfig) else None
    return math.inf if known is None else known


class TransformersEngine:
    """Samples from a transformers model in this process, which is in evaluation mode meanwhile.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        eos_token_ids: Tokens that end a completion; by default, as vLLM takes them, those of the
            model's generation config and the tokenizer's.
        batch_size: At most this many rows at a time; all by default.
    """

    name = "transformers"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        eos_token_ids: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        if eos_token_ids is None:
            own = getattr(model, "generation_config", None)
            eos_token_ids = configured_end_ids(own, tokenizer)
        self.eos_token_ids = list(eos_token_ids)
        self.batch_size = batch_size

    def stream(
        self, prompt_ids: Sequence[Sequence[int]], sampling: SamplingConfig, seeds: Sequence[int]
    ) -> Iterator[tuple[int, Completion]]:
        """As `Engine.stream`."""
        was_training = self.model.training
        self.model.eval()  # no dropout while sampling
        try:
            yield from self._stream(prompt_ids, sampling, seeds)
        finally:
            self.model.train(was_training)

    def close(self) -> None:
        """There is nothing to give back."""

    @torch.no_grad()
    def _stream(
        self, prompt_ids: Sequence[Sequence[int]], sampling: SamplingConfig, seeds: Sequence[int]
    ) -> Iterator[tuple[int, Completion]]:
        check_rows(prompt_ids, seeds, 1, _context(self.model))
        if self.tokenizer.pad_token_id is None:
            raise ValueError(
                "the tokenizer has no pad token; set tokenizer.pad_token (the eos token will do)"
            )
        if not prompt_ids:
            return
        batch = DecodeBatch(self.model, prompt_ids, self.tokenizer.pad_token_id)
        endings = Endings(self.tokenizer, sampling, self.eos_token_ids)
        filters = _probability_filters(sampling)
        waiting = deque(range(len(prompt_ids)))
        running: dict[int, _Row] = {}
        rows: list[int] = []  # at each position of the batch; some have ended
        token_B = torch.empty(0, dtype=torch.long, device=self.model.device)
        while waiting or running:
            new: list[int] = []
            if len(rows) - len(running) >= _LEAVING_SHARE * len(rows):
                kept = [position for position, row in enumerate(rows) if row in running]
                if batch.joins or not kept:
                    room = (self.batch_size or len(prompt_ids)) - len(kept)
                    new = [waiting.popleft() for _ in range(min(room, len(waiting)))]
                    new.sort(key=lambda row: (len(prompt_ids[row]), *prompt_ids[row]))
                prompt_logits_BV = batch.replace(kept, [prompt_ids[row] for row in new])
                token_B, rows = token_B[kept], [rows[position] for position in kept] + new
                running |= {row: _Row(prompt_ids[row], seeds[row]) for row in new}
            logits_BV = prompt_logits_BV if new else batch.step(token_B)
            sampled_B, ended = self._take(
                logits_BV, new or rows, running, sampling, filters, endings
            )
            token_B = torch.cat([token_B, sampled_B]) if new else sampled_B
            for row in ended:
                yield row, running.pop(row).completion

    def _take(
        self,
        logits_BV: Tensor,
        rows: Sequence[int],
        running: Mapping[int, "_Row"],
        sampling: SamplingConfig,
        filters: LogitsProcessorList,
        endings: Endings,
    ) -> tuple[Tensor, list[int]]:
        """Sample a token for each of `rows`: (B,) the tokens, and the running rows that end."""
        taking = {place: running[row] for place, row in enumerate(rows) if row in running}
        early = [
            place
            for place, row in taking.items()
            if len(row.completion.token_ids) < sampling.min_tokens
        ]
        if early and endings.end_token_ids:
            logits_BV[torch.tensor(early).unsqueeze(1), endings.end_token_ids] = -torch.inf
        uniform_B = torch.tensor(
            [taking[place].random() if place in taking else 0.0 for place in range(len(rows))],
            # 150,000 probabilities summed up in float32 lose the tail; MPS has nothing wider.
            dtype=torch.float32 if logits_BV.device.type == "mps" else torch.float64,
        )
        sampled = _sample(logits_BV, sampling, filters, uniform_B.to(logits_BV.device))
        columns = [column.tolist() for column in sampled]
        ended = []
        for place, row in taking.items():
            token, log_prob, entropy = (column[place] for column in columns)
            if row.append(token, log_prob, entropy, endings, sampling.max_tokens):
                ended.append(rows[place])
        return sampled[0], ended


class _Row:
    """A row that runs: its prompt, its random numbers, and what it has so far."""

    def __init__(self, prompt_ids: Sequence[int], seed: int) -> None:
        self.prompt_ids = prompt_ids
        self.random = np.random.default_rng(seed).random
        self.completion = Completion([], "", "length", [], [])

    def append(
        self, token: int, log_prob: float, entropy: float, endings: Endings, max_tokens: int
    ) -> bool:
        """Take a token; whether the row ends with it."""
        completion = self.completion
        assert completion.log_probs is not None and completion.entropies is not None
        completion.token_ids.append(token)
        completion.log_probs.append(log_prob)
        completion.entropies.append(entropy)
        text = endings.text_if_ended(self.prompt_ids, completion.token_ids)
        if text is not None:
            completion.text, completion.finish_reason = text, "stop"
        elif len(completion.token_ids) == max_tokens:
            completion.text = endings.text(self.prompt_ids, completion.token_ids)
        else:
            return False
        return True


def _probability_filters(sampling: SamplingConfig) -> LogitsProcessorList:
    filters = LogitsProcessorList()
    if sampling.top_k > 0:
        filters.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        filters.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0.0:
        filters.append(MinPLogitsWarper(sampling.min_p))
    return filters


def _sample(
    logits_BV: Tensor, sampling: SamplingConfig, filters: LogitsProcessorList, uniform_B: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, their log-probabilities and the entropies, each (B,).

    The token is the inverse of the cumulative distribution at `uniform_B`: one random number a
    token, whatever the vocabulary.
    """
    # On a CPU parts that stay in its cache are faster than all rows at once.
    rows = max(1, chunk_elements(logits_BV.device) // logits_BV.shape[1])
    chunks = zip(logits_BV.split(rows), uniform_B.split(rows), strict=True)
    sampled = [_sample_chunk(*chunk, sampling, filters) for chunk in chunks]
    token_B, log_prob_B, entropy_B = (torch.cat(column) for column in zip(*sampled, strict=True))
    return token_B, log_prob_B, entropy_B


def _sample_chunk(
    logits_BV: Tensor, uniform_B: Tensor, sampling: SamplingConfig, filters: LogitsProcessorList
) -> tuple[Tensor, Tensor, Tensor]:
    greedy = sampling.temperature == 0
    scores_BV = logits_BV if greedy else logits_BV / sampling.temperature
    # A forbidden token has probability 0, and 0 * -inf would be NaN.
    log_probs_BV = scores_BV.log_softmax(-1).clamp_(min=_LOWEST_LOG_PROB)
    probs_BV = log_probs_BV.exp()
    entropy_B = -torch.linalg.vecdot(probs_BV, log_probs_BV)
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
