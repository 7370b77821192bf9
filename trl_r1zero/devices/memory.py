"""How many bytes a training step, a vLLM server and a checkpoint take, from shapes alone.

What autograd keeps for the backward pass was read off the layers of transformers (RMSNorm in
float32, rotary positions, grouped queries, a gated MLP) and the log-probabilities of `functional`;
tests compare it with what autograd saves, and the whole with the peak of real steps.

Notation: H hidden size, I intermediate size, V vocabulary, N parameters; bytes throughout.
"""

import dataclasses
from dataclasses import dataclass

from .model_shape import ModelShape
from .optimizer_states import num_states, state_bytes
from .server_memory import CONTEXT_BYTES, ServerMemory, server_memory
from .training_setup import TrainingSetup

__all__ = [
    "ASLEEP_SERVER_BYTES",
    "CONTEXT_BYTES",
    "GIB",
    "MemoryParts",
    "ModelShape",
    "ServerMemory",
    "TrainingSetup",
    "checkpoint_bytes",
    "layer_activation_bytes",
    "model_bytes",
    "server_memory",
    "tokens_per_microbatch",
    "training_memory",
]

GIB = 2**30

# CUDA's context, of a server that sleeps, with what it keeps of its graphs: assumed, not measured.
ASLEEP_SERVER_BYTES = GIB
# Of the memory that is free, what a budget of tokens leaves to fragmentation and to what no model
# of memory foresees.
MARGIN = 0.1
# Wider micro-batches than this are no faster, and their quadratic parts only grow.
MOST_TOKENS = 32768
# Elements of the float32 chunks in which log-probabilities are worked out, as in `functional`, and
# how many such chunks forward (with entropies) and backward hold at a time.
CHUNK_ELEMENTS = 1 << 25
FORWARD_CHUNKS, _BACKWARD_CHUNKS = 5, 3
# Tile of TRL's fused head: tokens x entries of the vocabulary.
_FUSED_TILE = (4096, 32768)


@dataclass(frozen=True)
class MemoryParts:
    """Bytes of one process at the peak of a training step.

    Attributes:
        weights: Of the policy, and of a reference model.
        gradients: With the buckets of DDP, where there are several processes.
        optimizer: Its states.
        activations: What forward keeps for backward, autocast's copies of the matrices, and what
            the backward of one layer needs.
        logits: What the head and the loss need beyond that.
        reserved: CUDA's context and work space.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    reserved: int

    @property
    def static(self) -> int:
        """All that is not of one micro-batch.

        While a server samples it is less: of gradients only DDP's buckets stay (`trainer_bytes`).
        """
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        return self.static + self.activations + self.logits + self.reserved


def training_memory(shape: ModelShape, setup: TrainingSetup) -> MemoryParts:
    """What a process holds at its peak: in backward of a micro-batch that is not the first.

    Gradients of earlier micro-batches and the states of earlier updates are there then.
    """
    activations = _activation_bytes(shape, setup)
    return MemoryParts(
        weights=_weights(shape, setup),
        gradients=_gradients(shape, setup),
        optimizer=_optimizer(shape, setup),
        activations=activations,
        logits=max(_moments(shape, setup)) - activations,
        reserved=CONTEXT_BYTES if setup.on_cuda else 0,
    )


def tokens_per_microbatch(
    shape: ModelShape, setup: TrainingSetup, free_bytes: int, *, most: int = MOST_TOKENS
) -> int:
    """The most tokens of a micro-batch, padding included, that fit.

    Args:
        shape: Of the model.
        setup: Its `tokens` and `logit_positions` do not count.
        free_bytes: What the process may take of its device, its weights, gradients and optimizer
            state included. A tenth of it stays free.
        most: Never more than this.

    Returns:
        A multiple of 1,024 from 2,048 on, of 256 above that below; never less than the longest row.

    Raises:
        ValueError: Not even the longest row fits.
    """

    def total(tokens: int) -> int:
        changed = dataclasses.replace(setup, tokens=tokens, logit_positions=None)
        return training_memory(shape, changed).total

    available = int(free_bytes * (1 - MARGIN))
    if (needed := _row_bytes(shape, setup)) > available:
        raise ValueError(_does_not_fit(shape, setup, needed, free_bytes))
    low, high = setup.longest_row, max(most, setup.longest_row)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if total(middle) <= available else (low, middle - 1)
    step = 1024 if low >= 2048 else 256
    return max(low // step * step, setup.longest_row)


def checkpoint_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """A checkpoint on disk: the model (or its adapters) and the states of the optimizer."""
    whole = dataclasses.replace(setup, processes=1, sharding="none")
    return model_bytes(shape, setup) + _optimizer(shape, whole)


# What stays from step to step


def model_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """One copy of what is trained, and a saved model; PEFT keeps adapters in float32."""
    if setup.trainable_parameters is None:
        return shape.num_parameters * setup.weight_bytes
    return setup.trainable_parameters * 4


def _weights(shape: ModelShape, setup: TrainingSetup) -> int:
    one = shape.num_parameters * setup.weight_bytes
    own = one + (0 if setup.trainable_parameters is None else setup.trainable_parameters * 4)
    if setup.sharding == "zero3":
        # A layer and the head are whole while they compute.
        gathered = shape.num_layer_matrix_parameters + shape.num_head_parameters
        own = own // setup.processes + gathered * setup.compute_bytes
    return own + (one if setup.reference_model else 0)


def _gradients(shape: ModelShape, setup: TrainingSetup) -> int:
    one = model_bytes(shape, setup)
    if setup.sharding != "none":
        return one // setup.processes
    return one * (2 if setup.processes > 1 else 1)


def _optimizer(shape: ModelShape, setup: TrainingSetup) -> int:
    number = setup.trainable_parameters or shape.num_parameters
    if setup.sharding != "none" and setup.weight_bytes < 4:
        states = number * (4 + 4 * num_states(setup.optimizer))  # and float32 weights
    else:
        trained_bytes = model_bytes(shape, setup) // number
        states = int(number * state_bytes(setup.optimizer, trained_bytes))
    return states // (setup.processes if setup.sharding != "none" else 1)


# What comes and goes with a micro-batch


def layer_activation_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """What autograd keeps of one decoder layer for a micro-batch, weights and their casts excluded.

    By token: each of the two norms keeps its input in float32, the normalised input, and what the
    matrices behind it read, of which autocast makes a copy for each matrix (three and two); the
    attention its queries, keys, values and output; the MLP four tensors of width I.
    """
    c, hidden = setup.compute_bytes, shape.hidden_size
    residual = 4 if setup.casts_weights else c
    # In float32 the norm's input is the residual stream itself, so it is there anyway.
    norms = 2 * (4 + residual) * hidden
    read = (5 if setup.casts_weights else 2) * c * hidden
    queries = shape.num_heads * shape.head_dim
    keys = shape.num_kv_heads * shape.head_dim
    if shape.has_query_norm:
        norms += (4 + c) * (queries + keys)
    masked = setup.packed and setup.attention == "sdpa"
    width = setup.tokens if setup.packed else setup.longest_row
    if setup.attention == "eager" or masked:
        keys = queries  # a mask, or plain matrix products, want as many as there are queries
    attention = c * (2 * queries + 2 * keys) + 4 * shape.num_heads
    if setup.attention == "eager":
        # The softmax in float32, and its copy for the product with the values.
        attention += shape.num_heads * width * (4 + (c if c < 4 else 0))
    if masked:
        attention += c * width
    mlp = 4 * c * shape.intermediate_size
    return setup.tokens * (norms + read + attention + mlp + 2 * 4)


def _saved_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """What is kept from forward to backward, but for autocast's copies of matrices."""
    residual = 4 if setup.casts_weights else setup.compute_bytes
    stream = setup.tokens * shape.hidden_size * residual
    if setup.gradient_checkpointing:
        layers = shape.num_layers * stream
    else:
        layers = shape.num_layers * layer_activation_bytes(shape, setup)
    final_norm = setup.tokens * shape.hidden_size * (4 + 2 * residual)
    return layers + final_norm


def _cast_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Autocast's copies of the matrices, which live as long as the graph."""
    if not setup.casts_weights:
        return 0
    head = 0 if setup.fused_lm_head else shape.num_head_parameters
    return 2 * (shape.num_layers * shape.num_layer_matrix_parameters + head)


def _layer_work(shape: ModelShape, setup: TrainingSetup) -> int:
    """What the backward of one layer needs besides what was saved."""
    c = setup.compute_bytes
    work = setup.tokens * (3 * c * shape.intermediate_size + 8 * shape.hidden_size)
    if setup.gradient_checkpointing:
        work += layer_activation_bytes(shape, setup)
        if setup.casts_weights:
            work += 2 * shape.num_layer_matrix_parameters
    return work


def _activation_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    kept = _saved_bytes(shape, setup) + _layer_work(shape, setup)
    return kept + (0 if setup.gradient_checkpointing else _cast_bytes(shape, setup))


def _moments(shape: ModelShape, setup: TrainingSetup) -> list[int]:
    """Bytes beyond the static ones, at each moment that may be the peak."""
    saved, casts = _saved_bytes(shape, setup), _cast_bytes(shape, setup)
    kept = saved + (0 if setup.gradient_checkpointing else casts)
    c = setup.compute_bytes
    # The gradient of a tied matrix waits until the embedding's is there too.
    learns = setup.trainable_parameters is None
    head_gradient = shape.num_head_parameters * setup.weight_bytes if learns else 0
    moments = [
        kept + _layer_work(shape, setup) + (head_gradient if shape.tied else 0),
        head_gradient * (2 if shape.tied else 1),  # at the embedding, when all else is freed
        _optimizer_work(shape, setup),
    ]
    positions = setup.tokens if setup.logit_positions is None else setup.logit_positions
    read = positions * shape.hidden_size * c
    if setup.fused_lm_head:
        tile = min(positions, _FUSED_TILE[0]) * _FUSED_TILE[1] * c
        if not setup.on_cuda:
            tile *= 1 + 8 * 4 // c  # in plain torch: float32 copies of a tile
        fp32_gradient = shape.num_head_parameters * 4 if learns else 0
        cast = head_gradient if setup.weight_bytes < 4 else 0
        return [
            *moments,
            saved + casts + read + tile,
            kept + read + positions * shape.hidden_size * 4 + fp32_gradient + max(tile, cast),
        ]
    logits = positions * shape.vocabulary_size * c
    if setup.transformers_loss:
        # Beside the logits: log-probabilities, their gradient and that of the logits, in float32.
        return [*moments, kept + read + logits + 3 * 4 * positions * shape.vocabulary_size]
    chunk = 4 * min(positions * shape.vocabulary_size, CHUNK_ELEMENTS)
    cast_gradient = shape.num_head_parameters * c if setup.casts_weights and learns else 0
    return [
        *moments,
        saved + casts + read + logits + FORWARD_CHUNKS * chunk,
        kept + read + 2 * logits + _BACKWARD_CHUNKS * chunk,
        kept + 2 * read + logits + head_gradient + cast_gradient,
    ]


def _optimizer_work(shape: ModelShape, setup: TrainingSetup) -> int:
    """What an update needs for a while: the plain AdamW works on all weights at a time on a GPU."""
    if setup.optimizer == "adamw_torch" and setup.on_cuda:
        return model_bytes(shape, setup) // (setup.processes if setup.sharding != "none" else 1)
    return 0


def _does_not_fit(shape: ModelShape, setup: TrainingSetup, needed: int, free_bytes: int) -> str:
    """What is needed, and what would help: of the settings, only those that are enough."""
    changes: dict[str, dict[str, object]] = {
        "fused_lm_head: true": {"fused_lm_head": True},
        "gradient_checkpointing: true": {"gradient_checkpointing": True},
        "dtype: bfloat16": {"weights_dtype": "bfloat16", "autocast": False},
    }
    changes["dtype: bfloat16 and gradient_checkpointing: true"] = {
        **changes["dtype: bfloat16"],
        **changes["gradient_checkpointing: true"],
    }
    enough = [
        words
        for words, change in changes.items()
        if _row_bytes(shape, dataclasses.replace(setup, **change)) <= free_bytes * (1 - MARGIN)  # type: ignore[arg-type]
    ]
    # Both of them say nothing new where one does.
    advice = [f"set {words}" for words in enough if len(enough) == 1 or " and " not in words]
    if setup.trainable_parameters is None:
        advice.append("train adapters (use_peft: true)")
    advice.append("share out over more processes (accelerate_configs/zero3.yaml or fsdp2.yaml)")
    return (
        f"a row of {setup.longest_row} tokens needs {needed / GIB:.1f} GiB, a tenth more to be "
        f"safe, and there are {free_bytes / GIB:.1f} GiB: {', or '.join(advice)}"
    )


def _row_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Of a micro-batch of the longest row alone."""
    alone = dataclasses.replace(setup, tokens=setup.longest_row, logit_positions=None)
    return training_memory(shape, alone).total
