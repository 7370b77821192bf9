"""The card of a trained model, README.md in its folder: what the files of its run say, no more."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from trl_r1zero.common.arguments import default_of
from trl_r1zero.common.types import to_plain
from trl_r1zero.evaluation.files import write_atomically
from trl_r1zero.evaluation.markdown import fenced, inline, table, wrapped
from trl_r1zero.evaluation.metrics import score_interval
from trl_r1zero.recipe.requirements import is_local_path
from trl_r1zero.recipe.yaml_files import dump_yaml
from trl_r1zero.runs.logged_run import Line, LoggedRun, logged

from .report import lines_table

CARD_FILE = "README.md"
# Keys of recipes that say what a model learned from, and what the others of them are called.
_DATA = ("task", "prompt", "reward", "train_data", "eval_data")
_METHODS = {"grpo": "GRPO", "sft": "supervised fine-tuning", "dpo": "DPO"}
# What stands elsewhere in the card; settings of one machine, or of how a run is watched.
_NOT_SHOWN = {
    *(*_DATA, "model_name_or_path", "output_dir", "logging_dir", "run_name", "report_to"),
    *("accelerator_config", "debug", "disable_tqdm", "resume_from_checkpoint"),
}


def write_model_card(run_folder: str | Path, model_folder: str | Path) -> None:
    """Write README.md into the folder of a run's model.

    Args:
        run_folder: The run's `output_dir`.
        model_folder: `best/` or `final/` in it, or the run's own, whose card is of the newest
            weights.

    Raises:
        FileNotFoundError: The run has no metrics.
        ValueError: A file of it cannot be read.
    """
    run, folder = LoggedRun(Path(run_folder)), Path(model_folder)
    best = run.facts("best", "best.json") if folder.name == "best" else {}
    blocks = [[f"# {run.name}"], *_about(run, best), _facts_table(run), *_results(run, best)]
    if differing := _settings(run):
        blocks += [["## Settings"], *wrapped("Those that are not the defaults of the library.")]
        blocks += [fenced(dump_yaml(differing).rstrip())]
    text = "\n\n".join("\n".join(block) for block in blocks)
    data = _metadata(run, is_adapter=(folder / "adapter_config.json").is_file())
    write_atomically(folder / CARD_FILE, f"---\n{data.to_yaml()}\n---\n\n{text}\n".encode())


def _base(run: LoggedRun) -> str | None:
    """The model that the run began with: a hub id, a folder, or None where nobody gave a name."""
    return run.recipe.get("model_name_or_path") or run.facts("environment.json").get("model")


def _metadata(run: LoggedRun, is_adapter: bool) -> ModelCardData:
    base = _base(run)
    if base and is_local_path(base):  # of a model that was trained here, what it was made from
        card = Path(base, CARD_FILE)
        base = ModelCard.load(card).data.base_model if card.is_file() else None
    return ModelCardData(
        base_model=base,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["trl", "trl-r1zero", run.kind.method.replace("_", "-")],
    )


def _about(run: LoggedRun, best: Mapping[str, Any]) -> list[list[str]]:
    base, method = _base(run), run.kind.method
    begin = f"`{base}`" if base else "A model that was made in memory"
    step, planned = max(logged(run.lines, run.kind.step_key), default=0), run.planned_steps
    which = f"after {run.kind.step_name} {step:.0f}{f' of {planned}' if planned else ''}"
    if best:
        which = f"of the best validation, after {run.kind.step_name} {best[run.kind.step_key]}"
    how = _METHODS.get(method, method.replace("_", " "))
    return wrapped(f"{begin}, trained with {how} by trl-r1zero; the weights {which}.")


def _facts_table(run: LoggedRun) -> list[str]:
    facts = run.facts("environment.json")
    rows = [
        (key, value if isinstance(value, str) else dump_yaml(value, flow=True).strip())
        for key in _DATA
        if (value := run.recipe.get(key)) is not None
    ]
    if not run.recipe:
        rows = [("data and reward", "given in Python; the run's files do not name them")]
    if facts:
        versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
        rows += [("started", facts["started"]), ("versions", versions)]
        rows += [("commit of trl-r1zero", facts["commit"] or "unknown")]
        rows += [("device", f"{facts['device']}, {facts['num_processes']} process(es)")]
    return table(["what", "value"], [[key, inline(value)] for key, value in rows])


def _results(run: LoggedRun, best: Line) -> list[list[str]]:
    """The first validation, and that of the card's weights or the last before them."""
    if not run.validations:
        return [["## Results"], *wrapped("The run was not validated.")]
    name, key = run.kind.step_name, run.kind.step_key
    elapsed = {line[key]: line["elapsed_seconds"] for line in run.validations}
    own = {"elapsed_seconds": elapsed.get(best[key]), **best} if best else run.validations[-1]
    lines = {0: run.validations[0]} if run.validations[0][key] == 0 else {}
    columns = {str(step or "before"): [line] for step, line in (lines | {own[key]: own}).items()}
    rows = lines_table(f"validation after {name}", run.kind.validation_rows, columns)
    words = ["Behind ± is the standard error over the questions."]
    for step, (line,) in columns.items():
        if (interval := _interval(line)) is not None:
            low, high = interval
            words += [f"95% interval of the accuracy, {step}: {low:.3f} to {high:.3f} (Wilson)."]
    if best:
        words += [
            f"The best of {len(run.validations)} validations was picked on these very questions, "
            "and so is a little optimistic."
        ]
    return [["## Results"], rows, *wrapped(" ".join(words))]


def _interval(line: Line) -> list[float] | None:
    share, error = line.get("eval_accuracy"), line.get("eval_accuracy_stderr")
    count = line.get("eval_num_examples") or line.get("eval_num_pairs")
    if share is None or not count:
        return None
    return score_interval(share, share * (1 - share) / error**2 if error else count)


def _settings(run: LoggedRun) -> dict[str, Any]:
    """Settings that are not their defaults: of the recipe, or those that the trainer was given."""
    given = run.recipe or run.facts("config.json")
    classes = run.kind.dataclasses if run.recipe else run.kind.dataclasses[:1]
    derived = {name for one in classes for name in getattr(one, "derived_fields", {})}
    return {
        field.name: given[field.name]
        for one in classes
        for field in dataclasses.fields(one)
        if field.name in given
        and field.name not in derived | _NOT_SHOWN
        and not field.name.endswith("_token")
        and given[field.name] != to_plain(default_of(field))
    }
