"""Generation: one sampling config and one kind of completion for every backend."""

from .sampling import Completion, SamplingConfig, cut_after_stop, row_seeds
from .transformers_backend import generate

__all__ = ["Completion", "SamplingConfig", "cut_after_stop", "generate", "row_seeds"]
