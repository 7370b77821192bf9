"""An optimizer's averages: whether they can follow the gradients in the numbers that they are kept
in, and when their memory is taken."""

from collections.abc import Iterable
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch.optim import Adam, AdamW, Optimizer
from transformers import TrainerCallback

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
    stays at the largest gradients ever seen, and the updates stay small. `optim` is transformers'
    name of the optimizer, `distributed_type` accelerate's; only trained parameters count.
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


def make_averages(optimizer: Optimizer) -> None:
    """Give Adam its averages, zeros, before its first update does; others are left alone.

    At the first update torch's allocator holds the blocks of activations. Averages that are made
    inside of those keep whole blocks from ever being freed: a vLLM server on the same GPU would not
    find the memory that it was promised.
    """
    if type(optimizer) not in (Adam, AdamW):
        return
    for group in optimizer.param_groups:
        on_device = group["fused"] or group["capturable"]
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if group["amsgrad"] else 2]
        for parameter in group["params"]:
            if not parameter.requires_grad or optimizer.state.get(parameter):
                continue
            state = optimizer.state[parameter]
            device = parameter.device if on_device else torch.device("cpu")
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state.update({name: torch.zeros_like(parameter) for name in names})


class AveragesFirst(TrainerCallback):
    """`make_averages` when training begins, once a checkpoint has been loaded."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer: Any = kwargs["optimizer"]
        make_averages(getattr(optimizer, "optimizer", optimizer))  # accelerate's, or torch's
