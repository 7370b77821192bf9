"""How much a process takes at a time, so that it fits into memory and keeps a GPU busy.

Train batches are cut into micro-batches, completions into forwards without graph, and prompts into
batches of generation; no cut changes a result. Where no setting says how, the memory model
(`devices.memory`) decides on a GPU, and a plain number on a CPU, which gains nothing from more.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch

from trl_r1zero.devices.memory import (
    CHUNK_ELEMENTS,
    CONTEXT_BYTES,
    FORWARD_CHUNKS,
    GIB,
    MARGIN,
    MOST_TOKENS,
    tokens_per_microbatch,
    training_memory,
)
from trl_r1zero.devices.training_setup import ModelShape, TrainingSetup

from .microbatches import MicroBatchLimits

logger = logging.getLogger(__name__)

# Rows (DPO: pairs) of a micro-batch where neither a setting nor memory decides: the handout's
# 256 / 128 for GRPO, and 32 / 16 for supervised fine-tuning.
DEFAULT_ROWS = 2
# The same of a forward without graph: four times as many logits, and nothing else that is large.
DEFAULT_FORWARD_ROWS = 4 * DEFAULT_ROWS
# The same of a batch of generation: the handout's rollout batch.
DEFAULT_GENERATION_ROWS = 256

# Share of the free memory that sampling and forwards without graph plan with: tensors grow by
# copying, and the allocator keeps what it had.
_SHARE = 0.5
# Bytes of each entry of the vocabulary that sampling a row's next token takes: float32 logits,
# scores, log-probabilities, probabilities and entropies, and their float64 cumulative sum.
_SAMPLING_BYTES = 5 * 4 + 8
# Some kernels count the entries of a tensor in 32 bits.
_MOST_LOGITS = 2**31


def microbatch_limits(
    rows: int | None, tokens: int | None, budget: int | None, *, packed: bool
) -> MicroBatchLimits:
    """What a micro-batch may hold, from the rows and tokens that are set, if any, and the tokens
    that fit into memory, where that is known; `packed`: rows without padding."""
    tokens = budget if tokens is None else tokens
    if rows is None and tokens is None:
        rows = DEFAULT_ROWS
    return MicroBatchLimits(rows, tokens, padded=not packed)


def forward_limits(limits: MicroBatchLimits, memory: "TrainingMemory | None") -> MicroBatchLimits:
    """What a forward without graph, which keeps no activations, may hold: from the limits of a
    micro-batch, or a GPU's memory where that is known."""
    if memory is not None:
        return replace(limits, rows=None, tokens=memory.forward_tokens())
    return replace(limits, rows=limits.rows and max(limits.rows, DEFAULT_FORWARD_ROWS))


@dataclass(frozen=True)
class TrainingMemory:
    """What decides how much fits on the GPU of a trainer's process."""

    shape: ModelShape
    setup: TrainingSetup
    device_bytes: int  # for the whole process, but not for a server that shares the device

    def microbatch_tokens(self) -> int:
        """Tokens of a micro-batch at most; a ValueError if not even the longest row fits."""
        return tokens_per_microbatch(self.shape, self.setup, self.device_bytes)

    def forward_tokens(self) -> int:
        """Tokens of a forward without graph at most, of which all logits are made."""
        shape, size = self.shape, self.setup.compute_bytes
        # A layer's output, its MLP and the residual stream; queries, keys and values are less.
        per_token = (
            shape.vocabulary_size * size
            + 3 * shape.intermediate_size * size
            + 6 * shape.hidden_size * 4
        )
        casts = shape.num_parameters * size if self.setup.casts_weights else 0
        free = self._free() - casts - 4 * CHUNK_ELEMENTS * FORWARD_CHUNKS
        most = min(MOST_TOKENS, _MOST_LOGITS // shape.vocabulary_size)
        return max(min(int(free * _SHARE) // per_token, most), self.setup.longest_row)

    def generation_rows(self, tokens: int) -> int:
        """Rows of at most `tokens` that transformers may generate at a time, at least 1."""
        keys_and_values = self.shape.kv_values_per_token * self.setup.compute_bytes
        per_row = tokens * keys_and_values + self.shape.vocabulary_size * _SAMPLING_BYTES
        return max(int(self._free() * _SHARE) // per_row, 1)

    @property
    def _static(self) -> int:
        return training_memory(self.shape, self.setup).static

    def _free(self) -> int:
        return int(self.device_bytes * (1 - MARGIN)) - self._static - CONTEXT_BYTES

    def in_words(self) -> str:
        """For the log: the memory, and how much of it is always in use."""
        return (
            f"{self.device_bytes / GIB:.1f} GiB for this process, of which weights, gradients and "
            f"optimizer take {self._static / GIB:.1f}"
        )


def training_memory_of(
    model: Any, args: Any, device_bytes: int, *, longest_row: int, **rest: Any
) -> TrainingMemory | None:
    """What is known of the memory of a model, not wrapped, and the config that it is trained with.

    `rest` are `reference_model`, `processes` and `sharding` of `TrainingSetup`. None, and a line in
    the log, for an architecture or optimizer whose memory is not known.
    """
    try:
        shape = ModelShape.from_config(model.config)
        parameters = list(model.parameters())
        everything = all(p.requires_grad for p in parameters)
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        setup = TrainingSetup.from_arguments(
            args,
            str(model.dtype).removeprefix("torch."),
            model.config._attn_implementation,
            trainable_parameters=None if everything else trained,
            longest_row=longest_row,
            on_cuda=True,
            **rest,
        )
    except ValueError as error:
        logger.warning(
            "How much fits into memory is not known (%s): micro-batches of %d rows, unless "
            "max_tokens_per_microbatch or gradient_accumulation_steps says otherwise",
            error,
            DEFAULT_ROWS,
        )
        return None
    return TrainingMemory(shape, setup, device_bytes)


def bytes_to_train_with(device: torch.device) -> int | None:
    """What this process may take of its device: what is free, and what it has. None on CPUs."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    # Of this process's own context, which the memory model counts, `free` says nothing.
    return min(total, free + torch.cuda.memory_reserved(device) + CONTEXT_BYTES)


def out_of_memory(limits: MicroBatchLimits, error: torch.OutOfMemoryError) -> str:
    """The message where a micro-batch did not fit."""
    held, fewer = f"{limits.rows} rows", "tokens of fewer rows"
    if limits.tokens is not None:
        held, fewer = f"{limits.tokens:,} tokens at most", f"fewer, such as {limits.tokens // 2}"
    return (
        f"{error}\nMicro-batches hold {held}. Set max_tokens_per_microbatch to {fewer} (the "
        "gradient does not depend on it), gradient_checkpointing to true, or dtype to bfloat16"
    )
