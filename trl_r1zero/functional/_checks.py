"""Argument checks shared by the functional modules: registry look-up, shapes, required values."""

import math
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from trl_r1zero.common.naming import unknown_name_message

T = TypeVar("T")


def look_up(registry: Mapping[str, T], name: str, what: str) -> T:
    """Return `registry[name]`; an unknown name is a ValueError listing the keys and the nearest."""
    if name not in registry:
        raise ValueError(unknown_name_message(what, name, registry))
    return registry[name]


def require(value: T | None, argument: str, user: str) -> T:
    """Return `value`, or raise a ValueError saying that `user` needs `argument`."""
    if value is None:
        raise ValueError(f"{user} needs {argument}, got None; pass {argument}=...")
    return value


def require_positive(value: float | None, argument: str, user: str) -> float:
    """Return `value`, which must be given, finite and above zero."""
    number = require(value, argument, user)
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"{user}: {argument} must be a finite number above 0, got {number}")
    return number


def require_same_shape(
    tensor: Tensor, argument: str, reference: Tensor, reference_argument: str
) -> None:
    """Raise a ValueError unless the two tensors have one shape; nothing here broadcasts."""
    if tensor.shape != reference.shape:
        raise ValueError(
            f"{argument} has shape {tuple(tensor.shape)}, but {reference_argument} has shape "
            f"{tuple(reference.shape)}; both must have the same shape"
        )
