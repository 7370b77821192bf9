"""A judge's verdict on answers that nothing grades: `trl-r1zero judge`.

    trl-r1zero judge RESULTS ... --judge_url http://127.0.0.1:8000
    trl-r1zero judge --config judge.yaml [--key value ...]

RESULTS are folders that `trl-r1zero eval` wrote for alpaca_eval or simple_safety_tests. The judge
is a model behind any OpenAI-compatible server. Every verdict is written as it comes; the same
command after a kill goes on where it was. RESULTS/judgments/NAME has judgments.jsonl,
judge_summary.json and judge_report.md.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from trl_r1zero.common.arguments import AT_LEAST_0, Count, NonNegative, Positive, arg, check_ranges
from trl_r1zero.recipe import parse_recipe

from .errors import exit_on

# Imported when there is something to judge: --help needs no torch.
if TYPE_CHECKING:
    from trl_r1zero.evaluation.judged_tasks import JudgedTask
    from trl_r1zero.generation.chat_client import ChatClient

# Fields of a request that have a key of their own here, or a meaning that would break the judging.
_TAKEN = ("model", "messages", "max_tokens", "temperature", "stream", "n")
_DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass
class JudgeArguments:
    """Whose answers to judge, and whom to ask.

    Raises:
        ValueError: A value outside its range, a field of `request` that is not free, or an
            environment variable that is not set.
    """

    results: list[str] | str = arg(
        MISSING, "Folders of evaluations; on the command line they may also come first."
    )
    judge_url: str = arg(
        MISSING,
        "Of an OpenAI-compatible server, such as http://127.0.0.1:8000 or https://host/v1. An "
        "address without a path gets /v1.",
    )
    judge_model: str | None = arg(None, "Which of its models. Unset: the only one it has.")
    reference: str | None = arg(
        None,
        "For alpaca_eval: what to compare with, another folder of an evaluation or a JSON file of "
        "instruction, output and generator. Unset: the data's own outputs.",
    )
    name: str | None = arg(
        None, "Of the judgments' folder. Unset: the judge's, with the reference's."
    )
    max_tokens: Count | None = arg(1024, "Of the judge's reply at most. null: not sent.")
    temperature: NonNegative | None = arg(0.0, "Of the judge; 0 is greedy. null: not sent.")
    request: dict[str, Any] | None = arg(
        None,
        "Further fields of each request, such as {structured_outputs: {choice: [X, Y]}} or "
        "{reasoning_effort: low}.",
    )
    api_key_variable: str = arg(
        _DEFAULT_KEY_VARIABLE, "Environment variable with the key of the server; sent if it is set."
    )
    concurrency: Count = arg(16, "Requests at a time.")
    timeout_seconds: Positive = arg(300.0, "For one reply.")
    retries: Annotated[int, AT_LEAST_0] = arg(
        6,
        "How often a request is repeated when the server is busy (429), fails (5xx) or cannot be "
        "reached; after 1, 2, 4, ... seconds, or when it says (Retry-After).",
    )

    def __post_init__(self) -> None:
        if isinstance(self.results, str):
            self.results = [self.results]
        if not self.results:
            raise ValueError("results is empty; give folders that `trl-r1zero eval` wrote")
        check_ranges(self)
        for name in self.request or {}:
            if name in _TAKEN:
                raise ValueError(
                    f"request: got {name}, which is set by the command; remove it, or use the key "
                    "of that name, if there is one"
                )
        given = self.api_key_variable != _DEFAULT_KEY_VARIABLE
        if given and not os.environ.get(self.api_key_variable):
            raise ValueError(
                f"api_key_variable: the environment has no {self.api_key_variable}; set it"
            )

    def load(self) -> "tuple[list[JudgedTask], ChatClient]":
        """Read the folders and find the judge (ValueError, OSError, ChatServerError if there is
        none); nothing is asked yet."""
        from trl_r1zero.evaluation.judged_tasks import judged_task
        from trl_r1zero.generation.chat_client import ChatClient

        tasks = [judged_task(path, self.reference) for path in self.results]
        fixed = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        sent = {name: value for name, value in fixed.items() if value is not None}
        client = ChatClient(
            self.judge_url,
            self.judge_model,
            body={**sent, **(self.request or {})},
            api_key=os.environ.get(self.api_key_variable),
            concurrency=self.concurrency,
            timeout_seconds=self.timeout_seconds,
            retries=self.retries,
        )
        return tasks, client


def main(argv: Sequence[str] | None = None, program: str = "trl-r1zero judge") -> None:
    """Judge as a command line says (this process's by default), and print the results."""
    with exit_on(program, ValueError):
        arguments = _folders_as_key(list(sys.argv[1:] if argv is None else argv))
    recipe = parse_recipe((JudgeArguments,), arguments, __doc__ or "", program)
    from trl_r1zero.evaluation.files import ResultsFolderError
    from trl_r1zero.evaluation.judge import judge_answers, judge_table
    from trl_r1zero.generation.chat_client import ChatServerError

    with exit_on(program, ValueError, OSError, ChatServerError):
        tasks, client = recipe.instances[0].load()
    for task in tasks:
        print(
            f"{client.model} judges {len(task.answers):,} answers of {task.folder.model} to "
            f"{task.name} in {task.folder.path}",
            flush=True,
        )
        with exit_on(program, ResultsFolderError, ChatServerError, OSError):
            judged = judge_answers(task, client, name=recipe.instances[0].name)
        print(judge_table(judged.summary))
        print(f"\n{judged.folder}: judge_report.md to read, judgments.jsonl, judge_summary.json\n")


def _folders_as_key(arguments: list[str]) -> list[str]:
    """`A B --key value` as `--results A B --key value`."""
    starts = arguments and not arguments[0].startswith("-")
    if starts and "--results" in {argument.partition("=")[0] for argument in arguments}:
        raise ValueError(f"--results is given twice, {arguments[0]} being one of them; leave one")
    return ["--results", *arguments] if starts else arguments
