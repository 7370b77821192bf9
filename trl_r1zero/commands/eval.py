"""Zero-shot evaluation from a command line or a recipe: `trl-r1zero eval`.

    trl-r1zero eval --model Qwen/Qwen2.5-Math-1.5B --task math --data data/MATH/validation.jsonl
    trl-r1zero eval --config recipes/qwen2.5-math-1.5b/eval-math-r1_zero.yaml [--key value ...]

Every answer is sampled, graded and written as it comes; the same command after a kill goes on where
it was. The folder has results.jsonl, summary.json, report.md and report.html.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from trl_r1zero.recipe import ParsedRecipe, parse_recipe
from trl_r1zero.recipe.evaluation_arguments import EvaluationArguments, LoadedEvaluation
from trl_r1zero.recipe.requirements import check_requirements

from .errors import exit_on

# Imported when there is something to evaluate: --help needs no torch.
if TYPE_CHECKING:
    from trl_r1zero.evaluation import Evaluation


def run(loaded: LoadedEvaluation, recipe: ParsedRecipe) -> "Evaluation":
    """Sample, grade and write; see `evaluation.evaluate`."""
    from trl_r1zero.evaluation import evaluate
    from trl_r1zero.evaluation.results_folder import EVALUATION_FILE

    arguments = recipe.instances[0]
    with closing(loaded.engine), loaded.grader:
        # Those of the first start stay when the evaluation goes on.
        if not (loaded.folder / EVALUATION_FILE).exists():
            recipe.write(loaded.folder / "recipe.yaml")
            (loaded.folder / "environment.json").write_text(
                json.dumps(loaded.environment, indent=2) + "\n", encoding="utf-8"
            )
        evaluation = evaluate(
            loaded.engine,
            loaded.examples,
            loaded.grader,
            loaded.sampling,
            num_completions=arguments.n,
            seed=arguments.seed,
            folder=loaded.folder,
            settings=loaded.settings,
        )
    if loaded.task.output_file is not None:
        _write_outputs(loaded.task.output_file, loaded, evaluation)
    return evaluation


def _write_outputs(name: str, loaded: LoadedEvaluation, evaluation: "Evaluation") -> None:
    """Write the task's `output_file`."""
    from trl_r1zero.evaluation.files import json_line, json_text, write_atomically

    outputs = [
        loaded.task.output_row(
            row.extra["question"],
            loaded.prompt.reply(row.response),
            row.extra["metadata"],
            loaded.settings["model"],
        )
        for row in evaluation.rows
    ]
    is_lines = name.endswith(".jsonl")
    content = b"".join(map(json_line, outputs)) if is_lines else json_text(outputs)
    write_atomically(loaded.folder / name, content)


def main(argv: Sequence[str] | None = None, program: str = "trl-r1zero eval") -> None:
    """Evaluate as a command line says (this process's by default), and print the results."""
    with exit_on(program, ValueError, OSError, RuntimeError):
        check_requirements()
        recipe = parse_recipe(
            (EvaluationArguments,),
            list(sys.argv[1:] if argv is None else argv),
            description=__doc__ or "",
            program=program,
        )
        loaded: LoadedEvaluation = recipe.instances[0].load()
    from trl_r1zero.evaluation import results_table
    from trl_r1zero.evaluation.results_folder import ResultsFolderError
    from trl_r1zero.generation.vllm_server import VLLMServerError

    print(
        f"Evaluating {loaded.settings['model']} on {len(loaded.examples):,} examples of "
        f"{loaded.settings['task']}, results in {loaded.folder}",
        flush=True,
    )
    with exit_on(program, ResultsFolderError, VLLMServerError):
        evaluation = run(loaded, recipe)
    print(results_table(evaluation.summary))
    files = ["results.jsonl", "summary.json", loaded.task.output_file]
    print(f"\n{loaded.folder}: report.html and report.md to read, {', '.join(filter(None, files))}")
