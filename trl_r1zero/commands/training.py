"""One process of a run, as `trl-r1zero METHOD` and the scripts of recipes/ start it.

accelerate launch ... -m trl_r1zero.commands.training METHOD --config RECIPE [--key value ...]
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from trl_r1zero.common.naming import search_here
from trl_r1zero.common.quiet import quiet_libraries
from trl_r1zero.recipe.requirements import check_requirements

from .errors import exit_on, noting_a_full_disk, stopping_in_words
from .methods import MAKERS, TrainingSetup


def train(
    method: str, description: str, argv: Sequence[str] | None = None, program: str | None = None
) -> None:
    """Train as a recipe says, and print the report.

    The method (see `runs.kinds`) decides which settings a recipe may have; `description`, `argv`
    and `program` are as in `parse_recipe`.
    """
    check_requirements()  # before the imports that a wrong version would break
    quiet_libraries()

    from trl_r1zero.recipe import parse_recipe
    from trl_r1zero.recipe.loading import load_tokenizer
    from trl_r1zero.reports.report import short_report
    from trl_r1zero.runs.kinds import METHODS
    from trl_r1zero.runs.logged_run import LoggedRun
    from trl_r1zero.runs.started import WRONG_SETTINGS, started_run, training_errors
    from trl_r1zero.trainers.run_folder import write_skipped_rows

    search_here()
    program = program or f"{method}.py"
    recipe = parse_recipe(METHODS[method], argv, description=description, program=program)
    config, data, model = recipe.instances
    folder, go_on = Path(config.output_dir), ("--resume_from_checkpoint", "auto")
    with ExitStack() as stack:
        stack.enter_context(stopping_in_words(*go_on))
        with exit_on(program, *WRONG_SETTINGS):
            resume = stack.enter_context(started_run(recipe))
            tokenizer = load_tokenizer(model)
            trainer = MAKERS[method](TrainingSetup(config, data, model, tokenizer))
            if trainer.accelerator.is_main_process:
                recipe.write(folder / "recipe.yaml")
                write_skipped_rows(folder, data.skipped_rows)
        with exit_on(program, *training_errors()), noting_a_full_disk(folder, *go_on):
            trainer.train(resume_from_checkpoint=resume)
            if trainer.accelerator.is_main_process:
                print(short_report(LoggedRun(folder)))


if __name__ == "__main__":
    from .launch import description_of, program_of

    train(sys.argv[1], description_of(sys.argv[1]), sys.argv[2:], program_of(sys.argv[1]))
