"""How much there is to read from a GRPO step to its gradient."""

import inspect
import sys
from pathlib import Path
from types import CodeType

from tiny_grpo import make_trainer

import trl_r1zero

PACKAGE = str(Path(trl_r1zero.__file__).parent)
MOST_LINES = 2_400


def test_the_functions_of_a_step_are_read_in_one_sitting(tokenizer, tmp_path, monkeypatch):
    """Those of the package that run in `training_step`, with sampling by transformers."""
    ran: set[CodeType] = set()

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            ran.add(frame.f_code)

    trainer = make_trainer(tokenizer, tmp_path, n_grpo_steps=1)
    training_step = trainer.training_step

    def watched(*args):
        sys.setprofile(note)
        try:
            return training_step(*args)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(trainer, "training_step", watched)
    trainer.train()
    functions = [code for code in ran if not code.co_name.startswith("<")]
    assert {"training_step", "collect_rollouts", "rollout_loss", "grpo_microbatch_loss"} <= {
        code.co_name for code in functions
    }
    lines = sum(len(inspect.getsourcelines(code)[0]) for code in functions)
    assert lines <= MOST_LINES, f"{lines} lines in {len({c.co_filename for c in functions})} files"
