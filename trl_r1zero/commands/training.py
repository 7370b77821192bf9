"""How a run of the scripts in recipes/ goes."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_r1zero.recipe.requirements import check_requirements

from .errors import exit_on, stopping_in_words


@dataclass(frozen=True)
class TrainingSetup:
    """What a script makes its trainer of: the settings of the trainer, of what it is trained on and
    of the model, and the model's tokenizer."""

    config: Any
    data: Any
    model: Any
    tokenizer: Any

    def prompt_rooms(self) -> dict[str, Any]:
        """What the context leaves for prompts, by the recipe's key of the data."""
        from trl_r1zero.recipe.loading import load_prompt_rooms

        return load_prompt_rooms(self.config, self.model, self.tokenizer)

    def trainer_arguments(self) -> dict[str, Any]:
        """The arguments of a trainer that loads its model itself, but for the data."""
        from trl_r1zero.recipe.loading import model_settings

        return {**model_settings(self.config, self.model), "processing_class": self.tokenizer}


def train(method: str, description: str, make_trainer: Callable[[TrainingSetup], Any]) -> None:
    """Train as a recipe says, save the model at the end, and print the report.

    Args:
        method: Which kind of run (see `runs.kinds`), and so which settings a recipe may have.
        description: What `--help` says first.
        make_trainer: Makes the trainer.
    """
    check_requirements()  # before the imports that a wrong version would break

    from trl_r1zero.recipe import parse_recipe
    from trl_r1zero.recipe.loading import load_tokenizer
    from trl_r1zero.reports.report import write_report
    from trl_r1zero.runs.kinds import METHODS
    from trl_r1zero.runs.started import WRONG_SETTINGS, started_run, training_errors
    from trl_r1zero.trainers.run_folder import write_skipped_rows

    recipe = parse_recipe(METHODS[method], description=description)
    config, data, model = recipe.instances
    folder = Path(config.output_dir)
    with ExitStack() as stack:
        stack.enter_context(stopping_in_words("--resume_from_checkpoint", "auto"))
        with exit_on(f"{method}.py", *WRONG_SETTINGS):
            resume = stack.enter_context(started_run(recipe))
            tokenizer = load_tokenizer(model)
            trainer = make_trainer(TrainingSetup(config, data, model, tokenizer))
            if trainer.accelerator.is_main_process:
                recipe.write(folder / "recipe.yaml")
                write_skipped_rows(folder, data.skipped_rows)
        with exit_on(f"{method}.py", *training_errors()):
            trainer.train(resume_from_checkpoint=resume)
            trainer.save_model(str(folder / "final"))
        if trainer.accelerator.is_main_process:
            print(write_report(folder))
