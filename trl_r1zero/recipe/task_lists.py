"""Lists of tasks in recipes: several evaluations of one model, or several validation sets."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trl_r1zero.common.naming import unknown_name_message
from trl_r1zero.common.types import MISFIT, fit, type_name

# What a task of a list is called; it names a folder, and metrics.
NAME = re.compile(r"\w[\w.@+-]*", re.ASCII)


def named_tasks(
    key: str, entries: Sequence[Any], types: Mapping[str, Any], default_task: str = ""
) -> dict[str, dict[str, Any]]:
    """The settings of each task of a list, by name.

    Args:
        key: The recipe's, for messages.
        entries: Each is a task's name, or a mapping of settings, of which `name` says what the task
            is called here; by default as it is called everywhere.
        types: The settings that an entry may have, `task` among them, and their types.
        default_task: What an entry without `task` is; by default that is an error.

    Raises:
        ValueError: The list is empty; an unknown setting, a value of another type; no task, or a
            name that is none or is there twice.
    """
    if not entries:
        raise ValueError(f"{key}: got an empty list, expected at least one task")
    found: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(entries):
        own = {"task": entry} if isinstance(entry, str) else dict(entry)
        place = f"{key}[{number}]"
        name = own.pop("name", str(own.get("task") or default_task).rpartition(".")[2])
        for setting, value in own.items():
            if setting not in types:
                allowed = {"name", *types}
                raise ValueError(f"{place}: {unknown_name_message('setting', setting, allowed)}")
            own[setting] = fit(value, types[setting])
            if own[setting] is MISFIT:
                expected = type_name(types[setting])
                raise ValueError(f"{place}: {setting}: got {value!r}, expected {expected}")
        if not own.get("task", default_task):
            raise ValueError(f"{place}: got {entry!r}, expected a task, such as {{task: aime}}")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(
                f"{place}: name: got {name!r}, expected letters, digits and any of _.@+-, such as "
                "{name: AIME24, task: aime}"
            )
        if name in found:
            raise ValueError(
                f"{place}: {name!r} is there twice; give one of them another name, such as "
                f"{{name: {name}-2, ...}}"
            )
        found[name] = own
    return found
