"""What a trainer keeps on its device while a server samples, in bytes."""

from collections.abc import Iterable
from dataclasses import dataclass

# Numbers of the optimizer for each trainable parameter, and their bytes (None: as the parameter's).
# By the names of transformers' `optim`; the first that the name begins with counts.
_OPTIMIZER_STATE: dict[str, tuple[int, int | None]] = {
    "adamw_bnb_8bit": (2, 1),
    "adamw_8bit": (2, 1),
    "adamw_torch_8bit": (2, 1),
    "adamw_torch_4bit": (2, 1),
    "paged_": (0, None),  # in the host's memory
    "adamw": (2, None),
    "adafactor": (0, None),  # factored: rows and columns only
    "ademamix_8bit": (3, 1),
    "ademamix": (3, None),
    "lion_8bit": (1, 1),
    "lion": (1, None),
    "rmsprop_bnb_8bit": (1, 1),
    "rmsprop": (1, None),
    "adagrad": (1, None),
    "sgd": (0, None),
}
_UNKNOWN_STATE: tuple[int, int | None] = (2, None)  # as AdamW: rather too much than too little


@dataclass(frozen=True)
class ParameterFacts:
    """One parameter: how many numbers, of how many bytes, and whether it is trained."""

    count: int
    itemsize: int
    trained: bool = True


@dataclass(frozen=True)
class Sharing:
    """How the processes of a run share out what they train.

    Attributes:
        weights: Processes that share out the weights (FSDP, ZeRO-3), else 1.
        states: Processes that share out the optimizer's state (those and ZeRO-2), else 1.
        master_weights: Whether the optimizer keeps all in float32, weights too (DeepSpeed).
        gradient_buckets: Whether gradients stay in buckets as large as the weights (DDP).
    """

    weights: int = 1
    states: int = 1
    master_weights: bool = False
    gradient_buckets: bool = False


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
    numbers, size = next(
        (state for name, state in _OPTIMIZER_STATE.items() if optimizer.startswith(name)),
        _UNKNOWN_STATE,
    )
    weights = states = 0
    for one in parameters:
        weights += one.count * one.itemsize
        if not one.trained:
            continue
        weights += one.count * one.itemsize * sharing.gradient_buckets
        if sharing.master_weights:
            states += one.count * 4 * (numbers + 1)
        else:
            states += one.count * numbers * (one.itemsize if size is None else size)
    return weights // sharing.weights + states // sharing.states
