"""One process of a run, as `trl-r1zero METHOD` and the scripts of recipes/ start it.

accelerate launch ... -m trl_r1zero.commands.training METHOD --config RECIPE [--key value ...]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from trl_r1zero.common.naming import search_here
from trl_r1zero.data.bad_rows import BadRowsError
from trl_r1zero.recipe.requirements import check_requirements

from .errors import exit_on
from .methods import MAKERS, TrainingSetup


def train(
    method: str, description: str, argv: Sequence[str] | None = None, program: str | None = None
) -> None:
    """Train as a recipe says, save the model at the end, and print the report.

    Args:
        method: Which kind of run (see `runs.kinds`), and so which settings a recipe may have.
        description: What `--help` says first.
        argv: The arguments; those of this process by default.
        program: What messages call the program; the script's name by default.
    """
    check_requirements()  # before the imports that a wrong version would break

    from trl_r1zero.recipe import parse_recipe
    from trl_r1zero.recipe.loading import checkpoint_of, load_tokenizer
    from trl_r1zero.reports.report import write_report
    from trl_r1zero.runs.kinds import METHODS
    from trl_r1zero.trainers.run_folder import write_skipped_rows

    search_here()
    program = program or f"{method}.py"
    recipe = parse_recipe(METHODS[method], argv, description=description, program=program)
    config, data, model = recipe.instances
    tokenizer = load_tokenizer(model)
    checkpoint = checkpoint_of(config)
    with exit_on(program, BadRowsError):
        trainer = MAKERS[method](TrainingSetup(config, data, model, tokenizer))
    folder = Path(config.output_dir)
    if trainer.accelerator.is_main_process:
        recipe.write(folder / "recipe.yaml")
        write_skipped_rows(folder, data.skipped_rows)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(folder / "final"))
    if trainer.accelerator.is_main_process:
        print(write_report(folder))


if __name__ == "__main__":
    from .launch import description_of, program_of

    train(sys.argv[1], description_of(sys.argv[1]), sys.argv[2:], program_of(sys.argv[1]))
