"""What a run leaves behind, whoever starts it: the model at its end, cards of its models, a report
and a page.

Cards, report and page are made from the files of the run's folder by layers above this one. A
trainer finds them by name, as a recipe finds a plug-in.
"""

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trl_r1zero.common.naming import resolve
from trl_r1zero.common.run_files import METRICS_FILE

logger = logging.getLogger(__name__)

FINAL_MODEL_FOLDER = "final"
_PAGE = "trl_r1zero.watch.RunPage"
_CARD = "trl_r1zero.reports.model_card.write_model_card"


class FinalModel(TrainerCallback):
    """Saves a trainer's model at the end of training into `final/`, with its card."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir or ".", FINAL_MODEL_FOLDER)
        self._trainer.save_model(str(folder))
        if state.is_world_process_zero:
            write_card(args, folder)


def add_results(trainer: Any) -> None:
    """Let a trainer write `final/`, `index.html`, `report.md` and `curve.png`."""
    trainer.add_callback(FinalModel(trainer))
    trainer.add_callback(resolve("callback", _PAGE, {})())


def remove_results(trainer: Any) -> None:
    """The reverse of `add_results`."""
    trainer.pop_callback(FinalModel)
    trainer.pop_callback(resolve("callback", _PAGE, {}))


def write_card(args: Any, folder: Path | None = None) -> None:
    """Write README.md, the card of a model of a run with these settings, into the model's folder;
    into the run's own by default. Nothing if the run has logged nothing yet."""
    run = Path(args.output_dir or ".")
    if (run / METRICS_FILE).is_file():
        try:
            resolve("function", _CARD, {})(run, folder or run)
        except (OSError, ValueError) as error:  # a card is no reason to stop
            logger.warning("the card of %s was not written: %s", folder or run, error)
