"""What every trainer's `train` stands in: the run's folder, signals, and finite numbers."""

import logging
import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from trl_r1zero.common.folder_lock import folder_ends
from trl_r1zero.common.processes import any_process, is_main_process
from trl_r1zero.common.run_files import METRICS_FILE, read_metrics
from trl_r1zero.common.stopping import (
    RunStopped,
    StopSignals,
    end_with_launcher,
    how_to_go_on,
)
from trl_r1zero.evaluation.files import append_line

from .run_folder import RunFolder, last_whole_checkpoint

__all__ = ["DivergedError", "DivergenceCallback", "StopCallback", "guarded"]

logger = logging.getLogger(__name__)


class DivergedError(RuntimeError):
    """A loss, a gradient or a weight is not finite, and `on_divergence` is `stop`."""


@contextmanager
def guarded(
    trainer: Any, resume: str | bool | None, may_stop: Callable[[], bool] = lambda: True
) -> Iterator[str | None]:
    """Within it, train: the folder is this run's alone, signals save it, divergence stops it.

    Args:
        trainer: The trainer; its callbacks see updates and losses.
        resume: None or False for a new run, True, `last`, `auto` or a path; see
            `checkpoint_to_resume`.
        may_stop: Whether a run that stopped after the current update could go on from there.

    Yields:
        The checkpoint to go on from, None for none.

    Raises:
        ValueError: The folder is in use, holds a run with other settings, or holds one already; or
            there is no such checkpoint.
        DivergedError: The run diverged; its last checkpoint is still there.
        RunStopped: A signal ended it; it is saved.
    """
    folder, words = RunFolder(trainer.args.output_dir), {True: "last", False: None}
    wanted = words[resume] if isinstance(resume, bool) else resume
    end_with_launcher()
    with folder.held():
        checkpoint = folder.checkpoint(wanted)
        derived, settings = trainer.args.derived_fields, trainer.args.to_dict()
        own = {name: value for name, value in settings.items() if name not in derived}
        folder.go_on_with(checkpoint, folder.config, own)
        with StopSignals() as signals:
            # The last of them, for it has to see what the others ask for.
            stop = StopCallback(signals, may_stop)
            trainer.add_callback(stop)
            try:
                yield checkpoint
            finally:
                trainer.remove_callback(stop)


class StopCallback(TrainerCallback):
    """Ends a run that is asked to end by a signal, after a checkpoint; all processes alike.

    A validation that is due comes before the checkpoint, as ever, so no run goes on without it.
    """

    def __init__(self, signals: StopSignals, may_stop: Callable[[], bool] = lambda: True) -> None:
        self._signals, self._may_stop = signals, may_stop
        self._stops = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._look(args, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:  # before the first update there is nothing to save
            self._look(args, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._stops:  # nothing was saved: save_strategy `best` has put that off
            control.should_save, control.should_evaluate = True, False

    def _look(self, args: Any, control: Any) -> None:
        self._stops = self._may_stop() and any_process(bool(self._signals.number))
        if self._stops:
            self._signals.handled = True
            folder_ends(args.output_dir or ".")
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Once the checkpoint of a run that stops is there on all processes."""
        if not self._stops:
            return
        any_process(False)  # nobody goes before the main process has written everything
        number = self._signals.number or signal.SIGTERM
        if is_main_process():
            folder = Path(args.output_dir or ".", f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
            go_on = how_to_go_on("--resume_from_checkpoint", "auto")
            print(
                f"\nStopped by {signal.Signals(number).name} after {state.global_step} of "
                f"{state.max_steps} updates, saved in {folder}; go on with: {go_on}",
                file=sys.stderr,
                flush=True,
            )
        raise RunStopped(number)


class DivergenceCallback(TrainerCallback):
    """Looks at every update's loss and gradient, and at the weights after it (`on_divergence`).

    Attributes:
        loss: Of the current update on this process, set by a trainer that knows it.
    """

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        self._said = False

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        loss, self.loss = self.loss, None
        parameters = list(model.parameters())
        # With float16 the scaler leaves out updates that overflow, and tries a smaller scale.
        gradients = [] if args.fp16 else [p.grad for p in parameters]
        wrong = [] if _all_finite([loss]) else ["the loss"]
        wrong += [] if _all_finite(gradients) else ["the gradient"]
        if any_process(bool(wrong)):
            what = " and ".join(wrong) or "the loss of another process"
            self._act(args, state.global_step + 1, what)
            if args.on_divergence == "skip_update":
                for parameter in parameters:
                    parameter.grad = None  # which leaves the parameter and its averages alone

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        weights = (p.detach() for p in model.parameters() if p.requires_grad)
        if any_process(not _all_finite(weights)):
            self._act(args, state.global_step, "a weight", can_skip=False)

    def _act(self, args: Any, update: int, what: str, can_skip: bool = True) -> None:
        path = Path(args.output_dir or ".")
        verb = "are" if " and " in what else "is"
        problem = f"{what} {verb} not finite at update {update}"
        if args.on_divergence == "stop" or (args.on_divergence == "skip_update" and not can_skip):
            if is_main_process():
                elapsed = {"elapsed_seconds": _elapsed(path)}
                append_line(path / METRICS_FILE, {"step": update, **elapsed, "diverged": problem})
            last = last_whole_checkpoint(path)
            saved = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
            raise DivergedError(
                f"{problem}; {saved}. Mostly the learning rate is too high (here "
                f"{args.learning_rate:g}): start a new run with a lower one, or a lower "
                "max_grad_norm. on_divergence: skip_update leaves such updates out"
            )
        if not self._said and is_main_process():
            self._said = True
            does = "is left out" if args.on_divergence == "skip_update" and can_skip else "is made"
            logger.warning("%s; the update %s, as all such from now on", problem, does)


def _elapsed(folder: Path) -> float:
    lines = read_metrics(folder) if (folder / METRICS_FILE).is_file() else []
    return float(max((line.get("elapsed_seconds", 0.0) for line in lines), default=0.0))


def _all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Of this process's parts of them; one number comes from the device."""
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors if t is not None]
    whole = [t for t in local if t.numel()]
    return bool(torch.isfinite(get_total_norm(whole, math.inf)))
