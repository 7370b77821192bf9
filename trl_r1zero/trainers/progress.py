"""The progress bar of a run: what one wants to see while it trains."""

from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_callback import ProgressCallback as _ProgressCallback

from .run_folder import STEP_NAMES

_SHOWN = {
    "reward": "reward",
    "nll": "nll",
    "length/mean": "length",
    "entropy": "entropy",
    "loss": "loss",
}


class ProgressCallback(_ProgressCallback):
    """One bar over the optimizer updates, with the newest numbers behind it, and one line for each
    validation, instead of all metrics of all updates (they are in `metrics.jsonl`)."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "eval_accuracy" in logs:
            stderr = logs.get("eval_accuracy_stderr", float("nan"))
            key = next(key for key in STEP_NAMES if key in logs)
            self.training_bar.write(
                f"{STEP_NAMES[key]} {logs[key]:>4}: validation accuracy "
                f"{logs['eval_accuracy']:.3f} +- {stderr:.3f}, "
                f"length {logs['eval_length']:.1f}, {logs['eval_seconds']:.1f} s"
            )
        if "rollout_accuracy" in logs:
            self.training_bar.write(
                f"EI step {logs['ei_step']:>4}: {logs['rollout_kept']} rollouts kept, rollout "
                f"accuracy {logs['rollout_accuracy']:.3f}, {logs['rollout_seconds']:.1f} s"
            )
        shown = {short: f"{logs[name]:.3g}" for name, short in _SHOWN.items() if name in logs}
        if shown:
            self.training_bar.set_postfix(shown, refresh=False)

    def expect(self, num_updates: float) -> None:
        """Let the bar end at so many optimizer updates."""
        if self.training_bar is not None:
            self.training_bar.total = num_updates
            self.training_bar.refresh()


def use_progress_callback(trainer: Trainer, callback: TrainerCallback) -> None:
    """Put `callback` where the trainer has its own progress bar or printer."""
    had_bar = trainer.pop_callback(_ProgressCallback) is not None
    trainer.pop_callback(PrinterCallback)
    if had_bar:
        trainer.add_callback(callback)
