"""The progress bar of a run: what one wants to see while it trains."""

from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_callback import ProgressCallback as _ProgressCallback

_SHOWN = {"reward": "reward", "length/mean": "length", "entropy": "entropy", "loss": "loss"}


class ProgressCallback(_ProgressCallback):
    """One bar over the optimizer updates, with the newest numbers behind it, and one line for each
    validation, instead of all metrics of all updates (they are in `metrics.jsonl`)."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "eval_accuracy" in logs:
            stderr = logs.get("eval_accuracy_stderr", float("nan"))
            self.training_bar.write(
                f"GRPO step {logs['grpo_step']:>4}: validation accuracy "
                f"{logs['eval_accuracy']:.3f} +- {stderr:.3f}, "
                f"length {logs['eval_length']:.1f}, {logs['eval_seconds']:.1f} s"
            )
        shown = {short: f"{logs[name]:.3g}" for name, short in _SHOWN.items() if name in logs}
        if shown:
            self.training_bar.set_postfix(shown, refresh=False)


def use_progress_callback(trainer: Trainer, callback: TrainerCallback) -> None:
    """Put `callback` where the trainer has its own progress bar or printer."""
    had_bar = trainer.pop_callback(_ProgressCallback) is not None
    trainer.pop_callback(PrinterCallback)
    if had_bar:
        trainer.add_callback(callback)
