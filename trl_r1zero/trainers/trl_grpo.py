"""TRL's `GRPOTrainer`, without the import of vLLM that comes with it.

Where vLLM is installed, TRL's module imports all of it, many seconds in each process of a run; our
trainers, which speak to a server, need none of it (`policy_weights`, and with it vLLM, is imported
by those that do have a server). So the class for which TRL imports vLLM is imported at its first
use. TRL's own trainers find it as ever, whatever they do with it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_MODULE = "trl.generation.vllm_generation"


class _VLLMGeneration:
    """Stands for TRL's class `VLLMGeneration`: to call, to ask, to change and to inherit from."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _real()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(_real(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_real(), name, value)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_real(),)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, _real())


def _real() -> Any:
    from trl.generation.vllm_generation import VLLMGeneration

    return VLLMGeneration


@contextmanager
def _deferred() -> Iterator[None]:
    """While this holds, TRL's modules that ask for its class get what stands for it."""
    if _MODULE in sys.modules:  # imported before us: nothing is left to defer
        yield
        return
    module: Any = ModuleType(_MODULE)
    module.VLLMGeneration = _VLLMGeneration()
    sys.modules[_MODULE] = module
    try:
        yield
    finally:
        del sys.modules[_MODULE]


with _deferred():
    from trl import GRPOTrainer

__all__ = ["GRPOTrainer"]
