"""What a trainer keeps on its device while a server samples, in bytes."""

from collections.abc import Iterable
from dataclasses import dataclass

from .optimizer_states import num_states, state_bytes


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

    @classmethod
    def of(cls, distributed_type: str, processes: int, zero_stage: int | None = None) -> "Sharing":
        """What accelerate's way to run several processes shares out.

        Args:
            distributed_type: accelerate's name of it.
            processes: Trainer processes.
            zero_stage: With DeepSpeed.
        """
        if distributed_type == "FSDP":
            return cls(weights=processes, states=processes)
        if distributed_type == "DEEPSPEED":
            stage = zero_stage or 0
            return cls(
                weights=processes if stage >= 3 else 1,
                states=processes if stage >= 1 else 1,
                master_weights=True,
            )
        return cls(gradient_buckets=processes > 1)


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
        weights += one.count * one.itemsize
        if not one.trained:
            continue
        weights += one.count * one.itemsize * sharing.gradient_buckets
        if sharing.master_weights:
            states += one.count * 4 * (num_states(optimizer) + 1)
        else:
            states += int(one.count * state_bytes(optimizer, one.itemsize))
    return weights // sharing.weights + states // sharing.states
