"""How a recipe's dataclasses declare their keys."""

from dataclasses import field
from typing import Any


def key(text: str, **of_field: Any) -> Any:
    """A dataclass field with the text that --help shows; `of_field` as in `dataclasses.field`."""
    return field(metadata={"help": text}, **of_field)
