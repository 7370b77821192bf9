"""Whether an optimizer's averages can follow the gradients in the numbers that they are kept in."""

from collections.abc import Iterable

import torch
from accelerate.utils import DistributedType

# transformers' names of Adam that keep their averages in the dtype of the weights. (Those with
# 8 or 4 bits scale blocks of numbers, and bitsandbytes' keep float32 beside them.)
_AVERAGES_LIKE_WEIGHTS = ("adamw_torch", "adamw_torch_fused")
# These keep weights and averages in float32, whatever dtype the model is loaded in.
_FLOAT32_AVERAGES = (DistributedType.DEEPSPEED, DistributedType.FSDP)


def check_second_moment(
    optim: str,
    beta2: float,
    parameters: Iterable[torch.nn.Parameter],
    distributed_type: str = DistributedType.NO,
) -> None:
    """Raise a ValueError where Adam's average of squared gradients could not decay.

    The average loses a share 1 - beta2 of itself at each update. Kept in a dtype whose relative
    spacing is wider than that (2^-7 in bfloat16), it loses nothing or too much: with beta2 0.999 it
    stays at the largest gradients ever seen, and the updates stay small.

    Args:
        optim: transformers' name of the optimizer.
        beta2: Its second beta.
        parameters: Those of the model; what is trained of them counts.
        distributed_type: accelerate's.
    """
    if optim not in _AVERAGES_LIKE_WEIGHTS or distributed_type in _FLOAT32_AVERAGES:
        return
    for dtype in {parameter.dtype for parameter in parameters if parameter.requires_grad}:
        spacing = torch.finfo(dtype).eps
        if 1 - beta2 < spacing:
            name = str(dtype).removeprefix("torch.")
            raise ValueError(
                f"adam_beta2 is {beta2}, but the weights, and so the optimizer's averages, are "
                f"{name}: a decay by {1 - beta2:.2g} at each update is less than the spacing of "
                f"its numbers ({spacing:.2g}) and is rounded away; set adam_beta2 to at most "
                f"{1 - spacing:.3f} (0.95 is the default), or dtype to float32"
            )
