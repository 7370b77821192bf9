"""How many bytes a trainer keeps while a vLLM server samples, and how many the server takes."""

from collections.abc import Iterable
from dataclasses import dataclass

from .memory import CONTEXT_BYTES
from .model_shape import DTYPE_BYTES, ModelShape
from .training_setup import num_states, state_bytes


@dataclass(frozen=True)
class ParameterFacts:
    """One parameter: how many numbers, of how many bytes, and whether it is trained."""

    count: int
    itemsize: int
    trained: bool = True


@dataclass(frozen=True)
class Sharing:
    """How the processes of a run share what they train.

    Attributes:
        weights: Processes that shard the weights (FSDP, ZeRO-3), else 1.
        states: Processes that shard the optimizer's state (those, ZeRO-1 and ZeRO-2), else 1.
        master_weights: Whether the optimizer keeps all in float32, weights too (DeepSpeed).
        gradient_buckets: Whether gradients stay in buckets as large as the weights (DDP).
    """

    weights: int = 1
    states: int = 1
    master_weights: bool = False
    gradient_buckets: bool = False

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
    """Bytes of weights and optimizer state on one device, once the first update was made.

    Gradients are not among them: an update frees them, except those that DDP keeps in its buckets.

    Args:
        parameters: Of all models on the device, the reference too.
        optimizer: A name of transformers' `optim`, such as `adamw_torch_fused`.
        sharing: Among the processes; one process if None.
    """
    sharing = sharing or Sharing()
    weights = states = 0
    for one in parameters:
        copies = 2 if one.trained and sharing.gradient_buckets else 1
        weights += copies * one.count * one.itemsize
        if one.trained and sharing.master_weights:
            states += one.count * 4 * (num_states(optimizer) + 1)
        elif one.trained:
            states += int(one.count * state_bytes(optimizer, one.itemsize))
    return weights // sharing.weights + states // sharing.states


@dataclass(frozen=True)
class ServerMemory:
    """Bytes of a vLLM server on each of its devices.

    Attributes:
        weights: On a device.
        work: What a forward of the widest batch and the sampler need at most.
        kv_bytes_per_token: Keys and values of a token.
        kv_bytes: What its share of the device leaves for keys and values; below 0 if the rest does
            not even fit.
        sequences: How many of the longest texts fit at a time.
    """

    weights: int
    work: int
    kv_bytes_per_token: int
    kv_bytes: int
    sequences: int


def server_memory(
    shape: ModelShape,
    dtype: str,
    max_model_len: int,
    max_num_seqs: int,
    *,
    share_bytes: int,
    tensor_parallel_size: int = 1,
) -> ServerMemory:
    """What a server does with its share of a device.

    Args:
        shape: Of the model.
        dtype: Of its weights, and of keys and values.
        max_model_len: Tokens of a text at most, prompt and completion.
        max_num_seqs: Texts at a time at most.
        share_bytes: The memory of a device times the share that the server may take.
        tensor_parallel_size: Devices that share a copy of the model.
    """
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
