"""What one sees while a run trains."""

import sys
from types import SimpleNamespace

import transformers
from tiny_grpo import make_trainer
from transformers import TrainerCallback

from trl_r1zero.trainers.progress import ProgressCallback


def test_a_notebook_has_the_bar_and_no_table_of_losses(tokenizer, tmp_path, monkeypatch):
    """transformers' table has a column "Validation Loss", which says "No log" for an accuracy."""

    class Table(TrainerCallback):
        def on_evaluate(self, *_, **__):
            raise AssertionError("the table is written")

    notebook = SimpleNamespace(NotebookProgressCallback=Table)  # IPython's, which is not here
    monkeypatch.setitem(sys.modules, "transformers.utils.notebook", notebook)
    monkeypatch.setattr(transformers.trainer, "DEFAULT_PROGRESS_CALLBACK", Table)
    trainer = make_trainer(tokenizer, tmp_path, disable_tqdm=False, eval_every=1)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert Table not in kinds
    assert ProgressCallback in kinds
