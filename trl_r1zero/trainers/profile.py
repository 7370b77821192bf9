"""Where the time of each optimizer update went, printed while a run trains."""

import time
from typing import Any

from transformers import TrainerCallback

from .progress import ProgressCallback
from .timing import PARTS_OF_GENERATION

_SECONDS = "seconds/"
_NOT_ADDED = {"step", *PARTS_OF_GENERATION}


class ProfileCallback(TrainerCallback):
    """Prints a line for each logged update, above the progress bar: seconds and shares of the parts
    that the trainer logs as `seconds/...`, of the optimizer's step, and of the rest (clipping,
    logging)."""

    def __init__(self, progress: ProgressCallback) -> None:
        self._progress = progress
        self._began = self._optimizer_began = time.perf_counter()
        self._optimizer = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._optimizer_began = time.perf_counter()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._optimizer = time.perf_counter() - self._optimizer_began

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or f"{_SECONDS}step" not in logs:
            return
        total = time.perf_counter() - self._began
        parts = {
            name.removeprefix(_SECONDS).replace("_", " "): seconds
            for name, seconds in logs.items()
            if name.startswith(_SECONDS) and name.removeprefix(_SECONDS) not in _NOT_ADDED
        }
        parts["optimizer"] = self._optimizer
        parts["rest"] = max(0.0, total - sum(parts.values()))
        shares = ", ".join(f"{n} {s:.2f} s ({s / total:.0%})" for n, s in parts.items() if s)
        self._progress.say(f"update {state.global_step:>4}: {total:.2f} s: {shares}")
