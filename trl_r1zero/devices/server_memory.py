"""How a vLLM server spends the share of a device that it is given."""

from dataclasses import dataclass

from .model_shape import DTYPE_BYTES, ModelShape

# Of one process, assumed and not measured: CUDA's context, cuBLAS's work space, a server's graphs.
CONTEXT_BYTES = 2**30


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
    max_num_batched_tokens: int = 8192,
) -> ServerMemory:
    """What a server does with its share of a device.

    Args:
        shape: Of the model.
        dtype: Of its weights, and of keys and values.
        max_model_len: Tokens of a text at most, prompt and completion.
        max_num_seqs: Texts at work at a time.
        share_bytes: The memory of a device times the share that the server may take.
        tensor_parallel_size: Devices that a copy of the model is shared out over.
        max_num_batched_tokens: Tokens of a forward at most.
    """
    size = DTYPE_BYTES[dtype]
    weights = shape.num_parameters * size // tensor_parallel_size
    hidden = max_num_batched_tokens * size * (4 * shape.hidden_size)
    inner = max_num_batched_tokens * size * 3 * shape.intermediate_size // tensor_parallel_size
    # The sampler sorts and normalises float32 logits: some four copies.
    sampler = 4 * 4 * max_num_seqs * shape.vocabulary_size
    work = max(hidden + inner, sampler)
    per_token = shape.kv_values_per_token * size // min(tensor_parallel_size, shape.num_kv_heads)
    kv_bytes = share_bytes - weights - work - CONTEXT_BYTES
    sequences = max(0, kv_bytes) // (per_token * max_model_len)
    return ServerMemory(weights, work, per_token, kv_bytes, min(sequences, max_num_seqs))
