"""How a run of the scripts in recipes/ goes."""

from pathlib import Path

from transformers import Trainer

from trl_r1zero.recipe import ParsedRecipe
from trl_r1zero.reports.report import write_report


def run(trainer: Trainer, recipe: ParsedRecipe, checkpoint: str | None) -> None:
    """Train, save the model at the end, and print the report."""
    folder = Path(trainer.args.output_dir or ".")
    if trainer.accelerator.is_main_process:
        recipe.write(folder / "recipe.yaml")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(folder / "final"))
    if trainer.accelerator.is_main_process:
        print(write_report(folder))
