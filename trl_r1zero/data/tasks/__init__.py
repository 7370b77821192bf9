"""The tasks by name. To add one: a module with a dataclass, and its place in `_ALL`; or, outside of
this package, the dataclass's dotted path wherever a task is named."""

import typing
from dataclasses import fields
from typing import Any

from trl_r1zero.common.naming import resolve, unknown_name_message
from trl_r1zero.common.types import MISFIT, fit, type_name
from trl_r1zero.data.tasks.base import Example, Solution, Task
from trl_r1zero.data.tasks.chain_arithmetic import ChainArithmeticTask
from trl_r1zero.data.tasks.countdown import CountdownTask
from trl_r1zero.data.tasks.gsm8k import Gsm8kTask
from trl_r1zero.data.tasks.judged import AlpacaEvalTask, SimpleSafetyTestsTask
from trl_r1zero.data.tasks.math import (
    AimeTask,
    AmcTask,
    Math500Task,
    MathTask,
    MinervaTask,
    OlympiadBenchTask,
)
from trl_r1zero.data.tasks.mmlu import MmluTask

__all__ = ["TASKS", "Example", "Solution", "Task", "get_task"]

_ALL: list[type[Task]] = [
    MathTask,
    Gsm8kTask,
    CountdownTask,
    ChainArithmeticTask,
    MmluTask,
    AlpacaEvalTask,
    SimpleSafetyTestsTask,
    Math500Task,
    AimeTask,
    AmcTask,
    MinervaTask,
    OlympiadBenchTask,
]
TASKS = {task.name: task for task in _ALL}


def get_task(name: str, **task_args: Any) -> Task:
    """Returns the task of that name with these settings (the fields of its dataclass).

    Args:
        name: A key of `TASKS`, or the dotted path of a dataclass derived from `Task`.
        task_args: Its settings.

    Raises:
        ValueError: an unknown task or setting (the text names the nearest), or a value that the
            task does not admit, such as one of another type.
    """
    task_class = resolve("task", name, TASKS)
    if not (isinstance(task_class, type) and issubclass(task_class, Task)):
        raise ValueError(f"task: {name!r} must be a class derived from Task, got {task_class!r}")
    types_of_args = typing.get_type_hints(task_class)
    allowed = [field.name for field in fields(task_class)]  # type: ignore[arg-type]
    for key, value in task_args.items():
        if key not in allowed:
            raise ValueError(f"task {name!r}: " + unknown_name_message("task_arg", key, allowed))
        task_args[key] = fit(value, types_of_args[key])
        if task_args[key] is MISFIT:
            raise ValueError(
                f"task {name!r}: {key}: got {value!r} ({type(value).__name__}), expected "
                f"{type_name(types_of_args[key])}"
            )
    return task_class(**task_args)
