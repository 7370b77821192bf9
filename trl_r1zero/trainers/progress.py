"""The progress bar of a run: what one wants to see while it trains."""

from collections.abc import Iterator
from typing import Any

from transformers import Trainer
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_callback import ProgressCallback as _ProgressCallback
from transformers.utils import is_in_notebook
from transformers.utils import logging as bars

from .notebook import NotebookBar

_METRICS = ("reward", "accuracy", "margin", "nll", "length/mean", "entropy", "loss")


class ProgressCallback(_ProgressCallback):
    """One bar over the optimizer updates, with the newest numbers behind it, and one line for each
    validation, instead of all metrics of all updates (they are in `metrics.jsonl`). In Jupyter a
    `NotebookBar`.

    Args:
        step_key: What counts the steps in what is logged, where it is not optimizer updates alone.
        step_name: What a step is called.
    """

    def __init__(self, step_key: str, step_name: str) -> None:
        super().__init__()
        self.training_bar: Any = None
        self._step_key, self._step_name = step_key, step_name

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if is_in_notebook() and state.is_world_process_zero:
            bar: Any = NotebookBar(state.max_steps, self._step_name)
            self.training_bar, self.current_step = bar, 0
        else:
            super().on_train_begin(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if isinstance(self.training_bar, NotebookBar):
            self.training_bar.log(logs.get(self._step_key, state.global_step), logs)
            return
        step = f"{self._step_name} {logs.get(self._step_key, state.global_step):>4}"
        if "eval_accuracy" in logs or "eval_loss" in logs:
            self.training_bar.write(f"{step}: validation {', '.join(_validation(logs))}")
        if "rollout_accuracy" in logs:
            self.training_bar.write(
                f"{step}: {logs['rollout_kept']} rollouts kept, rollout accuracy "
                f"{logs['rollout_accuracy']:.3f}, {logs['rollout_seconds']:.1f} s"
            )
        # TRL logs a metric that is NaN as None.
        values = {
            name.removesuffix("/mean"): "nan" if logs[name] is None else f"{logs[name]:.3g}"
            for name in _METRICS
            if name in logs
        }
        if values:
            self.training_bar.set_postfix(values, refresh=False)

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        bar = self.training_bar
        print(line, flush=True) if bar is None else bar.write(line)

    def expect(self, num_updates: float) -> None:
        """Let the bar end at this number of optimizer updates."""
        if self.training_bar is not None:
            self.training_bar.total = num_updates
            self.training_bar.refresh()


def _validation(logs: dict[str, Any]) -> Iterator[str]:
    """What a validation found, as far as its kind of run measures it."""
    for name in ("accuracy", "loss"):
        if f"eval_{name}" in logs:
            stderr = logs.get(f"eval_{name}_stderr")
            error = "" if stderr is None else f" +- {stderr:.3f}"
            yield f"{name} {logs[f'eval_{name}']:.3f}{error}"
    for name, value in logs.items():
        if name.startswith("validation/") and name.endswith("/accuracy"):
            yield f"{name.split('/')[1]} {value:.3f}"
    if "eval_length" in logs:
        yield f"length {logs['eval_length']:.1f}"
    seconds = logs.get("eval_seconds", logs.get("eval_runtime"))
    if seconds is not None:
        yield f"{seconds:.1f} s"


def slow_bars_alone() -> None:
    """Let transformers' bars ("Loading weights", "Writing model shards") wait for two seconds."""
    bars.set_tqdm_hook(lambda make, args, given: make(*args, **{"delay": 2.0, **given}))


def use_progress_callback(trainer: Trainer, callback: ProgressCallback) -> None:
    """Put `callback` where the trainer has its own progress bar or printer."""
    had_bar = trainer.pop_callback(DEFAULT_PROGRESS_CALLBACK) is not None
    trainer.pop_callback(PrinterCallback)
    if had_bar:
        trainer.add_callback(callback)
