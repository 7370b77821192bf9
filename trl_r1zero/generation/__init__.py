"""Generation: one sampling config, one kind of completion and one interface for every backend."""

from .sampling import Completion, Engine, SamplingConfig, cut_after_stop, in_order, row_seeds
from .transformers_backend import TransformersEngine, generate

__all__ = [
    "Completion",
    "Engine",
    "SamplingConfig",
    "TransformersEngine",
    "cut_after_stop",
    "generate",
    "in_order",
    "row_seeds",
]
