"""Generation: one sampling config, one kind of completion and one interface for every backend."""

from typing import TYPE_CHECKING

from trl_r1zero.common.lazy import lazy_names

if TYPE_CHECKING:
    from .sampling import Completion, Engine, SamplingConfig, cut_after_stop, in_order, row_seeds
    from .transformers_backend import TransformersEngine, generate

# Public name -> the module that defines it.
_EXPORTS = {
    "Completion": "sampling",
    "Engine": "sampling",
    "SamplingConfig": "sampling",
    "TransformersEngine": "transformers_backend",
    "cut_after_stop": "sampling",
    "generate": "transformers_backend",
    "in_order": "sampling",
    "row_seeds": "sampling",
}
__all__ = [*_EXPORTS]
__getattr__ = lazy_names(__name__, _EXPORTS)
