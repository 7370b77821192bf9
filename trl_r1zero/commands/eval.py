"""Zero-shot evaluation from a command line or a recipe: `trl-r1zero eval`.

    trl-r1zero eval --model Qwen/Qwen2.5-Math-1.5B --task math --data data/MATH/validation.jsonl
    trl-r1zero eval --config recipes/qwen2.5-math-1.5b/eval-math-r1_zero.yaml [--key value ...]
    trl-r1zero eval --config recipes/qwen2.5-math-1.5b/eval-suite.yaml [--model M] [--key value ...]

Every answer is sampled, graded and written as it comes; the same command after a kill goes on where
it was. The folder has results.jsonl, summary.json, report.md and report.html. A list of tasks is a
suite: one engine answers all, each task has such a folder, and suite.md has one table.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_r1zero.common.quiet import quiet_libraries
from trl_r1zero.recipe import ParsedRecipe, parse_recipe
from trl_r1zero.recipe.evaluation_arguments import EvaluationArguments, LoadedEvaluation
from trl_r1zero.recipe.requirements import check_requirements

from .errors import exit_on, noting_a_full_disk, stopping_in_words

# Imported when there is something to evaluate: --help needs no torch.
if TYPE_CHECKING:
    from trl_r1zero.evaluation import Evaluation


def run_suite(
    loaded: Mapping[str, LoadedEvaluation], recipe: ParsedRecipe, folder: Path
) -> dict[str, Any]:
    """Evaluate each task on one engine; what `suite.json` holds, which is written after each."""
    from trl_r1zero.evaluation.sample_and_grade import check_results_folder
    from trl_r1zero.evaluation.suite import suite_facts, task_facts, write_suite

    known = {name: (name, one.settings, one.sampling.temperature) for name, one in loaded.items()}
    tasks = {name: task_facts(*known[name]) for name in loaded}
    with ExitStack() as stack:
        for one in loaded.values():
            stack.enter_context(one.grader)
        stack.enter_context(closing(next(iter(loaded.values())).engine))
        for one in loaded.values():  # before hours are spent on the first
            check_results_folder(**one.evaluate_arguments())
        recipe.write(folder / "recipe.yaml")
        for name, one in loaded.items():
            print(_evaluating(one), flush=True)
            evaluation = _evaluate(one, _recipe_of(recipe, one.arguments))
            tasks[name] = task_facts(*known[name], evaluation.summary)
            suite = suite_facts(recipe.instances[0].model, tasks)
            write_suite(folder, suite)
    return suite


def _evaluate(loaded: LoadedEvaluation, recipe: ParsedRecipe) -> "Evaluation":
    from trl_r1zero.evaluation import evaluate
    from trl_r1zero.evaluation.files import EVALUATION_FILE

    # Those of the first start stay when the evaluation goes on.
    if not (loaded.folder / EVALUATION_FILE).exists():
        recipe.write(loaded.folder / "recipe.yaml")
        (loaded.folder / "environment.json").write_text(
            json.dumps(loaded.environment, indent=2) + "\n", encoding="utf-8"
        )
    evaluation = evaluate(**loaded.evaluate_arguments())
    if loaded.task.output_file is not None:
        _write_outputs(loaded.task.output_file, loaded, evaluation)
    return evaluation


def _recipe_of(suite: ParsedRecipe, task: EvaluationArguments) -> ParsedRecipe:
    """The recipe of a task of a suite alone."""
    own = {field.name: getattr(task, field.name) for field in fields(task)}
    # Of plug-ins a recipe has the options, and the arguments what they are together.
    values = {name: own.get(name, value) for name, value in suite.values.items()}
    places = {
        name: suite.places["task"] if value != suite.values[name] else suite.places.get(name)
        for name, value in values.items()
    }
    return ParsedRecipe((task,), values, {name: at for name, at in places.items() if at})


def _evaluating(loaded: LoadedEvaluation) -> str:
    return (
        f"Evaluating {loaded.settings['model']} on {len(loaded.examples):,} examples of "
        f"{loaded.settings['task']}, results in {loaded.folder}"
    )


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
    with stopping_in_words():
        _main(list(sys.argv[1:] if argv is None else argv), program)


def _main(arguments: list[str], program: str) -> None:
    with exit_on(program, ValueError, OSError, RuntimeError):
        check_requirements()
        quiet_libraries()
        recipe = parse_recipe((EvaluationArguments,), arguments, __doc__ or "", program)
        asked: EvaluationArguments = recipe.instances[0]
        is_suite = isinstance(asked.task, list)
        loaded = asked.load_suite() if is_suite else {"": asked.load()}
    from trl_r1zero.evaluation import results_table
    from trl_r1zero.evaluation.files import ResultsFolderError
    from trl_r1zero.evaluation.suite import SUITE_FILE, SUITE_PAGE, suite_table
    from trl_r1zero.generation.vllm_server import VLLMServerError

    errors = (ResultsFolderError, VLLMServerError, OSError)
    if is_suite:
        with exit_on(program, *errors), noting_a_full_disk(asked.folder):
            suite = run_suite(loaded, recipe, asked.folder)
        print("\n".join(suite_table([suite])))
        print(f"\n{asked.folder}: {SUITE_PAGE} to read, {SUITE_FILE}, a folder for each task")
        return
    one = loaded[""]
    print(_evaluating(one), flush=True)
    with (
        exit_on(program, *errors),
        noting_a_full_disk(one.folder),
        closing(one.engine),
        one.grader,
    ):
        evaluation = _evaluate(one, recipe)
    print(results_table(evaluation.summary))
    files = ["results.jsonl", "summary.json", one.task.output_file]
    print(f"\n{one.folder}: report.html and report.md to read, {', '.join(filter(None, files))}")
