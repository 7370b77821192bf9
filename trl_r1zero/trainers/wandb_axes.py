"""Curves in Weights & Biases against the handout's axes."""

from typing import Any

from transformers import Trainer
from transformers.integrations import WandbCallback, rewrite_logs

# Both count optimizer updates.
TRAIN_AXIS, EVAL_AXIS = "train_step", "eval_step"


class WandbAxesCallback(WandbCallback):
    """transformers' callback, with `train/...` drawn against `train_step` and `eval/...` against
    `eval_step`."""

    def __init__(self) -> None:
        super().__init__()
        self._defined: set[str] = set()

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        logs: Any = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if not self._initialized:
            self.setup(args, state, model)
        if state.is_world_process_zero:
            axis = EVAL_AXIS if any(name.startswith("eval_") for name in logs) else TRAIN_AXIS
            # One by one: a name of its own goes before transformers' definition for all names.
            for name in {axis, *rewrite_logs(logs)} - self._defined:
                self._wandb.define_metric(name, step_metric=None if name == axis else axis)
                self._defined.add(name)
            # Into the row that transformers writes next.
            self._wandb.log({axis: state.global_step}, commit=False)
        super().on_log(args, state, control, model, logs, **kwargs)


def use_wandb_axes(trainer: Trainer) -> None:
    """Put the callback where the trainer has transformers' own."""
    if trainer.pop_callback(WandbCallback) is not None:
        trainer.add_callback(WandbAxesCallback())
