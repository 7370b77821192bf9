"""How many bytes a training step, a checkpoint and a vLLM server take, from shapes alone.

What autograd keeps for the backward pass was read off the layers of transformers (RMSNorm in
float32, rotary positions, grouped queries, a gated MLP) and the log-probabilities of `functional`;
tests compare it with what autograd saves, and the whole with the peak of real steps.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from .facts import GIB
from .training_setup import DTYPE_BYTES, ModelShape, TrainingSetup, state_bytes

# Of one process, assumed and not measured: CUDA's context, cuBLAS's work space, a server's graphs;
# and of a server that sleeps: its context, with what it keeps of its graphs.
CONTEXT_BYTES = ASLEEP_SERVER_BYTES = GIB
# Of the memory that is free, what a budget of tokens leaves to fragmentation and to what no model
# of memory foresees.
MARGIN = 0.1
# Wider micro-batches than this are no faster, and their quadratic parts only grow.
MOST_TOKENS = 32768
# Elements of the float32 chunks in which log-probabilities are computed, as in `functional`, and
# how many such chunks forward (with entropies) and backward hold at a time.
CHUNK_ELEMENTS = 1 << 25
CPU_CHUNK_ELEMENTS = 1 << 18
FORWARD_CHUNKS, _BACKWARD_CHUNKS = 5, 3
# Tile of TRL's fused head: tokens x entries of the vocabulary.
_FUSED_TILE = (4096, 32768)


@dataclass(frozen=True)
class MemoryParts:
    """Bytes of one process at the peak of a training step."""

    weights: int  # of the policy, and of a reference model
    gradients: int  # with the buckets of DDP, where there are several processes
    optimizer: int
    # What forward keeps for backward, copies by autocast, and what backward of one layer needs.
    activations: int
    logits: int  # what the head and the loss need beyond that
    reserved: int  # CUDA's context and work space

    @property
    def static(self) -> int:
        """What does not come and go with a micro-batch; while a server samples, `trainer_bytes`."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        return self.static + self.activations + self.logits + self.reserved


def training_memory(shape: ModelShape, setup: TrainingSetup) -> MemoryParts:
    """What a process holds at its peak: in backward of a micro-batch that is not the first.

    Gradients of earlier micro-batches and the states of earlier updates are there then.
    """
    saved, work = _saved(shape, setup), _layer_work(shape, setup)
    # Autocast's copies of the matrices live as long as the graph.
    head = 0 if setup.fused_lm_head else shape.num_head_parameters
    copied = shape.num_layers * shape.num_layer_matrix_parameters + head
    casts = 2 * copied if setup.casts_weights else 0
    kept = saved if setup.gradient_checkpointing else saved + casts
    # The gradient of a tied matrix waits until the embedding's is there too.
    learns = setup.trainable_parameters is None
    head_gradient = shape.num_head_parameters * setup.weight_bytes if learns else 0
    # The plain AdamW works on all weights at a time on a GPU.
    at_once = setup.optimizer == "adamw_torch" and setup.on_cuda
    peak = max(
        kept + work + (head_gradient if shape.tied else 0),
        head_gradient * (2 if shape.tied else 1),  # at the embedding, when all else is freed
        model_bytes(shape, setup) // setup.shards if at_once else 0,
        *_head_peaks(shape, setup, saved + casts, kept),
    )
    one = own = shape.num_parameters * setup.weight_bytes
    own += 0 if learns else model_bytes(shape, setup)
    if setup.sharding == "zero3":
        # A layer and the head are whole while they compute.
        gathered = shape.num_layer_matrix_parameters + shape.num_head_parameters
        own = own // setup.processes + gathered * setup.compute_bytes
    buckets = 2 if setup.processes > 1 and setup.sharding == "none" else 1
    return MemoryParts(
        weights=own + (one if setup.reference_model else 0),
        gradients=buckets * model_bytes(shape, setup) // setup.shards,
        optimizer=_optimizer(shape, setup),
        activations=kept + work,
        logits=peak - kept - work,
        reserved=CONTEXT_BYTES if setup.on_cuda else 0,
    )


def tokens_per_microbatch(shape: ModelShape, setup: TrainingSetup, free_bytes: int) -> int:
    """The most tokens of a micro-batch, padding included, that fit.

    Of `free_bytes`, in which weights, gradients and optimizer state count, a tenth stays free. The
    result is a multiple of 1,024 from 2,048 on, of 256 below, and at most `MOST_TOKENS`; or the
    longest row, if that is more. Raises a ValueError if not even that fits.
    """
    longest, available = setup.longest_row, int(free_bytes * (1 - MARGIN))
    if (needed := _total(shape, setup, longest)) > available:
        raise ValueError(_does_not_fit(shape, setup, needed, free_bytes))
    low, high = longest, max(MOST_TOKENS, longest)
    while low < high:
        middle = (low + high + 1) // 2
        fits = _total(shape, setup, middle) <= available
        low, high = (middle, high) if fits else (low, middle - 1)
    step = 1024 if low >= 2048 else 256
    return max(low // step * step, longest)


def checkpoint_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """A checkpoint on disk: the model (or its adapters) and the states of the optimizer."""
    return model_bytes(shape, setup) + _optimizer(shape, replace(setup, sharding="none"))


def model_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """One copy of what is trained, and a saved model; PEFT keeps adapters in float32."""
    if setup.trainable_parameters is None:
        return shape.num_parameters * setup.weight_bytes
    return setup.trainable_parameters * 4


def _optimizer(shape: ModelShape, setup: TrainingSetup) -> int:
    number = setup.trainable_parameters or shape.num_parameters
    master_weights = setup.sharding != "none" and setup.weight_bytes < 4
    size = model_bytes(shape, setup) // number
    return int(number * state_bytes(setup.optimizer, size, master_weights)) // setup.shards


def layer_activation_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """What autograd keeps of one decoder layer for a micro-batch, weights and their casts excluded.

    By token: each of the two norms keeps its input in float32, the normalised input, and what the
    matrices behind it read, of which autocast makes a copy for each matrix (three and two); the
    attention its queries, keys, values and output; the MLP four tensors of its inner width.
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
        keys = queries  # a mask, or plain matrix products, need as many as there are queries
    attention = c * (2 * queries + 2 * keys) + 4 * shape.num_heads
    if setup.attention == "eager":
        # The softmax in float32, and its copy for the product with the values.
        attention += shape.num_heads * width * (4 + (c if c < 4 else 0))
    if masked:
        attention += c * width
    mlp = 4 * c * shape.intermediate_size
    return setup.tokens * (norms + read + attention + mlp + 2 * 4)


def _saved(shape: ModelShape, setup: TrainingSetup) -> int:
    """What is kept from forward to backward, but for autocast's copies of matrices."""
    residual = 4 if setup.casts_weights else setup.compute_bytes
    stream = setup.tokens * shape.hidden_size
    checkpointing = setup.gradient_checkpointing
    layer = stream * residual if checkpointing else layer_activation_bytes(shape, setup)
    return shape.num_layers * layer + stream * (4 + 2 * residual)  # the last: the final norm


def _layer_work(shape: ModelShape, setup: TrainingSetup) -> int:
    """What the backward of one layer needs besides what was saved."""
    c = setup.compute_bytes
    work = setup.tokens * (3 * c * shape.intermediate_size + 8 * shape.hidden_size)
    if setup.gradient_checkpointing:
        work += layer_activation_bytes(shape, setup)
        work += 2 * shape.num_layer_matrix_parameters if setup.casts_weights else 0
    return work


def _head_peaks(shape: ModelShape, setup: TrainingSetup, forward: int, backward: int) -> list[int]:
    """Possible peaks of head and loss, with the bytes kept after forward and before backward."""
    c, learns = setup.compute_bytes, setup.trainable_parameters is None
    head = shape.num_head_parameters if learns else 0
    positions = setup.tokens if setup.logit_positions is None else setup.logit_positions
    read = positions * shape.hidden_size * c
    if setup.fused_lm_head:
        tile = min(positions, _FUSED_TILE[0]) * _FUSED_TILE[1] * c
        if not setup.on_cuda:
            tile *= 1 + 8 * 4 // c  # in plain torch: float32 copies of a tile
        cast = head * setup.weight_bytes if setup.weight_bytes < 4 else 0
        in_backward = read + positions * shape.hidden_size * 4 + head * 4 + max(tile, cast)
        return [forward + read + tile, backward + in_backward]
    entries = positions * shape.vocabulary_size
    logits = entries * c
    if setup.transformers_loss:
        # Beside the logits: log-probabilities, their gradient and that of the logits, in float32.
        return [backward + read + logits + 3 * 4 * entries]
    chunk = 4 * min(entries, CHUNK_ELEMENTS if setup.on_cuda else CPU_CHUNK_ELEMENTS)
    cast_gradient = head * c if setup.casts_weights else 0
    return [
        forward + read + logits + FORWARD_CHUNKS * chunk,
        backward + read + 2 * logits + _BACKWARD_CHUNKS * chunk,
        backward + 2 * read + logits + head * setup.weight_bytes + cast_gradient,
    ]


def _does_not_fit(shape: ModelShape, setup: TrainingSetup, needed: int, free_bytes: int) -> str:
    """What is needed, and what would help: of the settings, only those that are enough."""
    checkpointing = {"gradient_checkpointing": True}
    bfloat16 = {"weights_dtype": "bfloat16", "autocast": False}

    def enough(change: dict[str, Any]) -> bool:
        changed = replace(setup, **change)
        return _total(shape, changed, setup.longest_row) <= free_bytes * (1 - MARGIN)

    advice = ["set fused_lm_head: true"] if enough({"fused_lm_head": True}) else []
    advice += ["set gradient_checkpointing: true"] if enough(checkpointing) else []
    advice += ["set dtype: bfloat16"] if enough(bfloat16) else []
    if not advice and enough({**bfloat16, **checkpointing}):
        advice = ["set dtype: bfloat16 and gradient_checkpointing: true"]
    if setup.trainable_parameters is None:
        advice.append("train adapters (use_peft: true)")
    advice.append("share out over more processes (accelerate_configs/zero3.yaml or fsdp2.yaml)")
    return (
        f"a row of {setup.longest_row} tokens needs {needed / GIB:.1f} GiB, a tenth more to be "
        f"safe, and there are {free_bytes / GIB:.1f} GiB: {', or '.join(advice)}"
    )


def _total(shape: ModelShape, setup: TrainingSetup, tokens: int) -> int:
    """Bytes at the peak with micro-batches of so many tokens."""
    return training_memory(shape, replace(setup, tokens=tokens, logit_positions=None)).total


@dataclass(frozen=True)
class ParameterFacts:
    """One parameter: how many numbers, of how many bytes, and whether it is trained."""

    count: int
    itemsize: int
    trained: bool = True


@dataclass(frozen=True)
class Sharing:
    """How the processes of a run share what they train."""

    weights: int = 1  # processes that shard the weights (FSDP, ZeRO-3), else 1
    states: int = 1  # processes that shard the optimizer's state (those, ZeRO-1 and -2), else 1
    master_weights: bool = False  # the optimizer keeps all in float32, weights too (DeepSpeed)
    gradient_buckets: bool = False  # gradients stay in buckets as large as the weights (DDP)

    @classmethod
    def of(cls, distributed_type: str, processes: int, zero_stage: int | None = None) -> "Sharing":
        """From accelerate's `distributed_type`, and DeepSpeed's stage."""
        if distributed_type not in ("FSDP", "DEEPSPEED"):
            return cls(gradient_buckets=processes > 1)
        stage = 3 if distributed_type == "FSDP" else zero_stage or 0
        return cls(
            weights=processes if stage >= 3 else 1,
            states=processes if stage >= 1 else 1,
            master_weights=distributed_type == "DEEPSPEED",
        )


def trainer_bytes(
    parameters: Iterable[ParameterFacts], optimizer: str, sharing: Sharing | None = None
) -> int:
    """Bytes of weights and optimizer state of all models on one device, after the first update.

    Gradients are not among them: an update frees them, except those that DDP keeps in its buckets.
    `optimizer` is a name of transformers' `optim`; without `sharing` there is one process.
    """
    sharing = sharing or Sharing()
    weights = states = 0
    for one in parameters:
        copies = 2 if one.trained and sharing.gradient_buckets else 1
        weights += copies * one.count * one.itemsize
        if one.trained:
            size = state_bytes(optimizer, one.itemsize, sharing.master_weights)
            states += int(one.count * size)
    return weights // sharing.weights + states // sharing.states


@dataclass(frozen=True)
class ServerMemory:
    """Bytes of a vLLM server on each of its devices."""

    weights: int
    work: int  # what a forward of the widest batch and the sampler need at most
    kv_bytes_per_token: int  # of keys and values
    kv_bytes: int  # left for keys and values; below 0 if the rest does not even fit
    sequences: int  # how many of the longest texts fit at a time


def server_memory(
    shape: ModelShape,
    dtype: str,
    max_model_len: int,
    max_num_seqs: int,
    *,
    share_bytes: int,
    tensor_parallel_size: int = 1,
) -> ServerMemory:
    """What a server does with `share_bytes` of a device; the rest is named as vLLM's settings."""
    size, tokens = DTYPE_BYTES[dtype], 8192  # of a forward at most, as vLLM cuts it
    weights = shape.num_parameters * size // tensor_parallel_size
    hidden = tokens * size * (4 * shape.hidden_size)
    inner = tokens * size * 3 * shape.intermediate_size // tensor_parallel_size
    # The sampler sorts and normalises float32 logits: some four copies.
    sampler = 4 * 4 * max_num_seqs * shape.vocabulary_size
    work = max(hidden + inner, sampler)
    per_token = shape.kv_values_per_token * size // min(tensor_parallel_size, shape.num_kv_heads)
    kv_bytes = share_bytes - weights - work - CONTEXT_BYTES
    sequences = max(0, kv_bytes) // (per_token * max_model_len)
    return ServerMemory(weights, work, per_token, kv_bytes, min(sequences, max_num_seqs))
