"""Sampling from a transformers causal language model, with working stop strings.

It is the backend for CPUs, tests and small models; vLLM is the one for speed. Why it is a loop of
its own, and not `model.generate`:

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

from collections.abc import Container, Iterator, Sequence

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

from .endings import Endings, configured_end_ids
from .sampling import Completion, SamplingConfig, check_rows, in_order

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
    """Sample one completion for each prompt.

    Args:
        model: A causal language model; it is called as it is (no change of train/eval mode).
        tokenizer: Decodes the completions; its `pad_token_id` pads the prompts on the left.
        prompt_ids: Token ids of each prompt, none empty. A prompt that wants G completions is given
            G times.
        sampling: How to sample.
        seeds: One seed for each prompt (see `row_seeds`); not used by greedy decoding.
        eos_token_ids: Tokens that end a completion; the tokenizer's own by default.
        batch_size: At most this many rows at a time; all by default.

    Returns:
        The completions, in the order of the prompts.

    Raises:
        ValueError: A prompt is empty, the number of seeds is wrong, or there is no pad token.
    """
    if eos_token_ids is None:
        eos_token_ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    engine = TransformersEngine(
        model, tokenizer, eos_token_ids=eos_token_ids, batch_size=batch_size
    )
    return in_order(engine._stream(prompt_ids, sampling, seeds))


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

    def _stream(
        self, prompt_ids: Sequence[Sequence[int]], sampling: SamplingConfig, seeds: Sequence[int]
    ) -> Iterator[tuple[int, Completion]]:
        check_rows(prompt_ids, seeds)
        if self.tokenizer.pad_token_id is None:
            raise ValueError(
                "the tokenizer has no pad token; set tokenizer.pad_token (the eos token will do)"
            )
        batch_size = self.batch_size or max(len(prompt_ids), 1)
        for start in range(0, len(prompt_ids), batch_size):
            rows = slice(start, start + batch_size)
            for row, completion in self._stream_batch(prompt_ids[rows], sampling, seeds[rows]):
                yield start + row, completion

    @torch.no_grad()
    def _stream_batch(
        self, prompt_ids: Sequence[Sequence[int]], sampling: SamplingConfig, seeds: Sequence[int]
    ) -> Iterator[tuple[int, Completion]]:
        endings = Endings(self.tokenizer, sampling, self.eos_token_ids)
        filters = _probability_filters(sampling)
        batch = _Batch(self.model, prompt_ids, self.tokenizer.pad_token_id)
        uniforms = torch.tensor(  # (rows, max_tokens), one stream for each row
            np.stack([np.random.default_rng(seed).random(sampling.max_tokens) for seed in seeds]),
            # 150,000 probabilities summed up in float32 lose the tail; MPS has nothing wider.
            dtype=torch.float32 if self.model.device.type == "mps" else torch.float64,
            device=self.model.device,
        )
        running = {row: Completion([], "", "length", [], []) for row in range(len(prompt_ids))}
        for step in range(sampling.max_tokens):
            logits_BV = batch.next_logits()
            if step < sampling.min_tokens:
                logits_BV[:, endings.end_token_ids] = -torch.inf
            sampled = _sample(logits_BV, sampling, filters, uniforms[batch.rows, step])
            columns = (column.tolist() for column in (batch.rows, *sampled))
            for row, token, log_prob, entropy in zip(*columns, strict=True):
                if row not in running:
                    continue
                completion = running[row]
                assert completion.log_probs is not None and completion.entropies is not None
                completion.token_ids.append(token)
                completion.log_probs.append(log_prob)
                completion.entropies.append(entropy)
                text = endings.text_if_ended(prompt_ids[row], completion.token_ids)
                if text is not None:
                    completion.text, completion.finish_reason = text, "stop"
                    yield row, running.pop(row)
            if not running:
                return
            batch.append(sampled[0], running)
        for row, completion in running.items():
            completion.text = endings.text(prompt_ids[row], completion.token_ids)
            yield row, completion


class _Batch:
    """The model's inputs and its cache for the rows that are left.

    Attributes:
        rows: (B,) the row at each position of the batch.
    """

    def __init__(
        self, model: PreTrainedModel, prompt_ids: Sequence[Sequence[int]], pad_token_id: int
    ) -> None:
        width = max(len(ids) for ids in prompt_ids)
        input_ids = torch.full((len(prompt_ids), width), pad_token_id)
        attention_mask = torch.zeros((len(prompt_ids), width), dtype=torch.long)
        for row, ids in enumerate(prompt_ids):
            input_ids[row, width - len(ids) :] = torch.tensor(ids)
            attention_mask[row, width - len(ids) :] = 1
        self.model = model
        self.input_ids = input_ids.to(model.device)  # (B, T), later (B, 1)
        self.attention_mask = attention_mask.to(model.device)
        self.position_ids = (self.attention_mask.cumsum(-1) - 1).clamp(min=0)
        self.cache = DynamicCache(config=model.config)
        self.rows = torch.arange(len(prompt_ids), device=model.device)

    def next_logits(self) -> Tensor:
        """(B, V) of the next token, in float32."""
        output = self.model(
            input_ids=self.input_ids,
            attention_mask=self.attention_mask,
            position_ids=self.position_ids,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def append(self, token_B: Tensor, running: Container[int]) -> None:
        """One token to each row; rows that are not running any more leave, if they are many."""
        self.input_ids = token_B.unsqueeze(1)
        self.position_ids = self.position_ids[:, -1:] + 1
        self.attention_mask = torch.nn.functional.pad(self.attention_mask, (0, 1), value=1)
        keep = [position for position, row in enumerate(self.rows.tolist()) if row in running]
        if len(self.rows) - len(keep) >= _COMPACT_SHARE * len(self.rows):
            kept = torch.tensor(keep, device=self.model.device)
            self.cache.batch_select_indices(kept)
            self.input_ids, self.position_ids = self.input_ids[kept], self.position_ids[kept]
            self.attention_mask, self.rows = self.attention_mask[kept], self.rows[kept]


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
