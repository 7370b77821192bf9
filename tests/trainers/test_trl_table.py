"""docs/trl_fields.md, the table of TRL's fields, is made of the configs. To write it anew:

PYTHONPATH=tests python tests/trainers/test_trl_table.py
"""

import dataclasses
import inspect
from typing import Any

from tiny_models import REPOSITORY
from trl import GRPOConfig

from trl_r1zero.common.arguments import default_of
from trl_r1zero.trainers import R1ZeroGRPOConfig
from trl_r1zero.trainers.trl_fields import DERIVED_FIELDS, UNSUPPORTED_FIELDS

PAGE = REPOSITORY / "docs" / "trl_fields.md"
HEAD = """# TRL's settings of GRPO, one by one

Every field that TRL's `GRPOConfig` declares, and what it is here. Supported fields are recipe keys
with TRL's meaning; setting one of the others is an error that says what this table says. The names
of TRL's `loss_type` and their counterparts are in [grpo.md](grpo.md#trls-names).

| field | TRL's default | here |
| --- | --- | --- |
"""


def declared() -> list[str]:
    """The fields of TRL's own classes, also those that transformers has with another default."""
    owners = [cls for cls in GRPOConfig.__mro__ if cls.__module__.startswith("trl.")]
    names = {name for cls in owners for name in inspect.get_annotations(cls)}
    return sorted(names & {field.name for field in dataclasses.fields(GRPOConfig)})


def shown(value: Any) -> str:
    return "" if value is dataclasses.MISSING else f"`{value!r}`"


def here(name: str, theirs: Any) -> str:
    if name in DERIVED_FIELDS:
        return f"follows from another setting: set {DERIVED_FIELDS[name]}"
    if name in UNSUPPORTED_FIELDS:
        return f"refused: {UNSUPPORTED_FIELDS[name]}"
    ours = {field.name: field for field in dataclasses.fields(R1ZeroGRPOConfig)}[name]
    default = default_of(ours)
    text = "supported" if default == theirs else f"supported, default {shown(default)}"
    # What differs from TRL's text has a text of its own.
    own = [cls for cls in R1ZeroGRPOConfig.__mro__ if cls.__module__.startswith("trl_r1zero.")]
    if any(name in inspect.get_annotations(cls) for cls in own):
        text += f". {ours.metadata['help']}"
    return text


def page() -> str:
    defaults = {field.name: default_of(field) for field in dataclasses.fields(GRPOConfig)}
    rows = []
    for name in declared():
        text = here(name, defaults[name]).replace("|", "\\|")
        rows.append(f"| `{name}` | {shown(defaults[name])} | {text} |\n")
    return HEAD + "".join(rows)


def test_the_page_is_what_the_configs_say():
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_field_is_there():
    assert set(inspect.get_annotations(GRPOConfig)) <= set(declared())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
