"""Generation: one sampling config, one kind of completion and one interface for every backend."""

from typing import TYPE_CHECKING

from trl_r1zero.common.lazy import lazy_names

if TYPE_CHECKING:
    from .sampling import Completion, Engine, SamplingConfig, cut_after_stop, in_order, row_seeds
    from .transformers_backend import TransformersEngine, generate

__all__, __getattr__ = lazy_names(
    __name__,
    {
        "sampling": "Completion Engine SamplingConfig cut_after_stop in_order row_seeds",
        "transformers_backend": "TransformersEngine generate",
    },
)
