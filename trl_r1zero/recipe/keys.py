"""How a recipe's dataclasses declare their keys."""

from dataclasses import MISSING, field
from typing import Any


def key(text: str, default: Any = MISSING, *, kw_only: bool = False) -> Any:
    """A dataclass field with the text that --help shows."""
    return field(default=default, kw_only=kw_only, metadata={"help": text})
