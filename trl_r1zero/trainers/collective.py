"""Collective calls: what all processes of a run agree on."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator

from trl_r1zero.common.processes import from_main


def raise_alike(failure: Exception | None, expected: type[Exception], what: str) -> None:
    """Raise the main process's error on all of them, as an `expected` one whatever its class.

    One that left them alone would have them wait for it until their group's timeout.

    Args:
        failure: This process's error, if it has one.
        expected: The class that is raised.
        what: What failed, for errors of other classes.
    """
    own = isinstance(failure, expected)
    words = f"{failure}" if own else f"{what} failed: {type(failure).__name__}: {failure}"
    message = from_main(None if failure is None else words)
    if message is not None:
        raise expected(message) from (None if own else failure)
    if failure is not None:
        raise failure  # of another process


def means_of(metrics: Mapping[str, float], accelerator: Accelerator) -> dict[str, float]:
    """The mean of each metric over the processes, which all have the same ones."""
    return {
        name: accelerator.reduce(torch.tensor(value, device=accelerator.device), "mean").item()
        for name, value in sorted(metrics.items())
    }
