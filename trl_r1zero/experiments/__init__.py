"""Experiments: grids of runs over seeds."""

from importlib import import_module
from typing import Any

# Imported when they are used: the command line's help does not wait for torch.
_EXPORTS = {
    "Experiment": "experiment",
    "read_experiment": "experiment",
    "Plan": "plan",
    "PlannedRun": "plan",
    "make_plan": "plan",
    "Sweep": "sweep",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
