"""Asks a model: `trl-r1zero chat`.

    trl-r1zero chat RUN|MODEL [QUESTION] [--truth ANSWER] [--key value ...]

RUN is a run's folder, or a model within one (RUN/best): the question is asked with the run's task,
prompt and reward, and sampled as its validation samples. MODEL is another folder or a hub id. With
the true answer comes the reward's verdict. Without a question they are read from the terminal, or
one a line from what is piped in. The keys are those of `trl-r1zero eval`, but for data and results;
by default transformers samples in this process.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trl_r1zero.common.arguments import arg
from trl_r1zero.evaluation.markdown import printable
from trl_r1zero.experiments.experiment import argument
from trl_r1zero.recipe import RecipeError, parse_recipe
from trl_r1zero.recipe.evaluation_arguments import EvaluationArguments
from trl_r1zero.recipe.requirements import check_requirements
from trl_r1zero.recipe.yaml_files import read_recipe

from .errors import exit_on

if TYPE_CHECKING:
    from trl_r1zero.data.prompts import Prompt
    from trl_r1zero.grading import Grader

_PROGRAM = "trl-r1zero chat"
# Key of an evaluation -> the keys of a run that say it, the first that is set.
_OF_A_RUN = {
    **{name: (name,) for name in ("task", "task_args", "prompt", "reward", "min_tokens")},
    "temperature": ("eval_temperature",),
    "top_p": ("eval_top_p",),
    "max_tokens": ("eval_max_completion_length", "max_completion_length"),
}


@dataclass
class ChatArguments(EvaluationArguments):
    """What to ask; the other keys are those of an evaluation of one task, but for its rows."""

    question: str | None = arg(None, "May also stand behind the model. Unset: they are read.")
    truth: str | None = arg(None, "The true answer to it, for the reward's verdict.")
    data: str | None = field(init=False, default=None)
    split: str | None = field(init=False, default=None)
    num_examples: int | None = field(init=False, default=None)
    output_dir: str | None = field(init=False, default=None)
    on_bad_row: Literal["error", "skip"] = field(init=False, default="error")
    backend: str = arg(
        "transformers", "What samples; as of `trl-r1zero eval`, with its keys of each backend."
    )

    def __post_init__(self) -> None:
        if isinstance(self.task, list):
            raise ValueError(f"task: got {self.task}, expected one task")
        super().__post_init__()


def main(argv: Sequence[str] | None = None, program: str = _PROGRAM) -> None:
    """Ask as a command line says, and print answers."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with exit_on(program, ValueError, OSError, RuntimeError):
        check_requirements()
        _chat(_parse(arguments, program))


def _parse(arguments: list[str], program: str) -> ChatArguments:
    if {"-h", "--help"} & set(arguments):
        usage = f"{program} RUN|MODEL [QUESTION]"
        parse_recipe((ChatArguments,), arguments, __doc__ or "", usage)
    places = [word for word in arguments[:2] if not word.startswith("-")]
    if not places or arguments[0].startswith("-"):
        raise RecipeError(f"the run or model comes first, such as `{program} runs/first`")
    if len(places) == 2 and not arguments[1].startswith("-"):
        arguments = [arguments[0], "--question", *arguments[1:]]
    given = {word[2:].partition("=")[0] for word in arguments if word.startswith("--")}
    if wrong := sorted(given & {"model", "config"}):
        raise RecipeError(f"--{wrong[0]} is no key here; the run or model comes first")
    own = settings_of(arguments[0])
    derived = [argument(name, value) for name, value in own.items() if name not in given]
    (asked,) = parse_recipe((ChatArguments,), [*derived, *arguments[1:]]).instances
    return asked


def settings_of(name: str) -> dict[str, Any]:
    """The settings that follow from a run's folder, a model within one, or any model. A ValueError
    if a run has no model yet."""
    path = Path(name)
    run = path if (path / "recipe.yaml").is_file() else path.parent
    if not path.is_dir() or not (run / "recipe.yaml").is_file():
        return {"model": name}
    model = _model_of(run) if run == path else path
    of_run = {setting.key: setting.value for setting in read_recipe(run / "recipe.yaml")}
    if "task" not in of_run:  # tuned on instructions or pairs, in the Alpaca template
        return {"model": str(model), "task": "alpaca_eval", "prompt": "alpaca"}
    settings = {
        key: next((of_run[name] for name in names if of_run.get(name) is not None), None)
        for key, names in _OF_A_RUN.items()
    }
    return {"model": str(model), **{k: v for k, v in settings.items() if v is not None}}


def _model_of(run: Path) -> Path:
    """The model at the end of a run; of one that goes on the best, or the newest checkpoint."""
    from trl_r1zero.trainers.run_folder import last_whole_checkpoint

    for folder in (run / "final", run / "best"):
        if any(folder.glob("*config.json")):
            return folder
    checkpoint = last_whole_checkpoint(run)
    if checkpoint is None:
        raise ValueError(f"{run} has no model yet: neither final, nor best, nor a checkpoint")
    return Path(checkpoint)


def _chat(asked: ChatArguments) -> None:
    with asked.open_model() as (engine, prompt, grader):
        print(f"{asked.model}, prompt {prompt.name}, temperature {asked.temperature:g}", flush=True)
        ask = _asker(asked, engine, prompt, grader)
        if asked.question is not None:
            ask(asked.question, asked.truth)
            return
        for question, truth in _read_questions(asked.truth):
            try:
                ask(question, truth)
            except ValueError as error:  # a truth that the reward cannot read, a long question
                print(f"error: {error}", file=sys.stderr)


def _asker(
    asked: ChatArguments, engine: Any, prompt: "Prompt", grader: "Grader"
) -> Callable[[str, str | None], None]:
    """The function that asks a question, and prints the answers and their verdicts."""
    from trl_r1zero.data.tokenization import encode_prompts
    from trl_r1zero.generation import in_order, row_seeds

    number = 0
    sampling = asked.sampling_for(prompt)

    def ask(question: str, truth: str | None) -> None:
        nonlocal number
        ids = encode_prompts([prompt.format(question)], engine.tokenizer) * asked.n
        seeds = row_seeds(asked.seed, "chat", number, range(asked.n))
        number += 1
        answers = in_order(engine.stream(ids, sampling, seeds))
        for place, answer in enumerate(answers, 1):
            head = f"[{place} of {asked.n}] " if asked.n > 1 else ""
            tail = " [cut at max_tokens]" if answer.truncated else ""
            print(f"{head}{printable(answer.text.strip())}{tail}")
            if truth is not None:
                print(f"  {_verdict(grader, answer.text, truth)}", flush=True)

    return ask


def _verdict(grader: "Grader", response: str, truth: str) -> str:
    from trl_r1zero.rewards import is_correct

    [grade] = grader.grade([(response, truth)])
    if not grade.parts:
        return "nothing grades answers to this task; --reward names a function that does"
    parts = ", ".join(f"{name} {value:g}" for name, value in grade.parts.items())
    words = "right" if is_correct(grade.parts) else "wrong"
    because = "" if grade.rule is None else f"; {grade.rule}"
    answer = "" if grade.answer is None else f"; graded answer: {grade.answer!r}"
    return f"{words}: {parts}{because}{answer}"


def _read_questions(truth: str | None) -> Iterator[tuple[str, str | None]]:
    """Questions and truths from the terminal, which is asked for both, or of piped lines."""
    terminal = sys.stdin.isatty()
    if terminal:
        print("An empty question ends it.")
    while True:
        try:
            question = input("question> " if terminal else "").strip()
            if not question:
                return
            own = input("true answer (may be empty)> ").strip() if terminal and not truth else ""
        except (EOFError, KeyboardInterrupt):
            return
        yield question, own or truth
