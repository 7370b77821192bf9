"""Names of a package that are resolved on first use (PEP 562): importing one of its modules, or a
light name, does not import what the heavy ones need."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, names_of: Mapping[str, str]) -> tuple[list[str], Callable[[str], Any]]:
    """A package's public names, and its `__getattr__`; `names_of`: module -> what it defines."""
    module_of = {name: module for module, names in names_of.items() for name in names.split()}

    def resolve(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{module_of[name]}"), name)

    return list(module_of), resolve
