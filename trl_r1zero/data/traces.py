"""Traces for supervised fine-tuning: a formatted prompt and the response to be learned.

A source holds either traces (rows with `prompt` and `response`, taken as they are) or problems with
worked solutions, which a task reads and a prompt formats.
"""

import logging
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from trl_r1zero.data.bad_rows import BadRowError, BadRows, reading, usable
from trl_r1zero.data.files import Row, describe
from trl_r1zero.data.prompts import ChatPrompt, Prompt
from trl_r1zero.data.sources import read_source
from trl_r1zero.data.tasks.base import RewardFn, Solution, Task
from trl_r1zero.rewards import RewardPool, is_correct
from trl_r1zero.rewards.extraction import extract_boxed

logger = logging.getLogger(__name__)

TRACE_FIELDS = ("prompt", "response")
KINDS = {
    True: "a trace, with the fields prompt and response",
    False: "a problem, without the fields prompt and response",
}
# The graders ask for exactly one space here; line breaks in its place are a usual fault.
BETWEEN_TAGS = re.compile(r"</think>(\s*)<answer>")


@dataclass(frozen=True)
class Trace:
    """One prompt and the response to be learned."""

    prompt: str  # already formatted; it identifies the question
    response: str  # what follows it, character by character
    # What the response is graded against, None if the row has none.
    ground_truth: str | list[str] | None
    where: str  # the place it came from ("file:line"), for messages


def load_traces(
    task: Task,
    prompt: Prompt,
    source: str | None,
    split: str = "train",
    *,
    graded: bool = False,
    on_bad_row: str | BadRows = "error",
) -> list[Trace]:
    r"""Returns the traces of a source, in its order.

    The first row that has `prompt` and `response`, or neither, decides what all rows are:

    * traces, with the fields `prompt` and `response`, and perhaps `ground_truth` (a string or a
      list of them): taken as they are; with a chat template, prompts that are not in it yet are
      put into it;
    * problems with worked solutions, as `task` reads them. The response is then, by the prompt's
      answer format, ` WORKING </think> <answer> ANSWER </answer>` (for a prompt that ends in
      `<think>`), or a new line, WORKING and, if it has no complete `\boxed{...}`, another line with
      `\boxed{ANSWER}`.

    Args:
        task: reads rows that are problems; for a source of None, has its own.
        prompt: formats the questions of problems.
        source: see `trl_r1zero.data.sources`; None for tasks that generate their examples, or that
            have a usual source.
        split, on_bad_row: see `Task.load`. A row of the other kind cannot be used, nor can one with
            an empty response.
        graded: a trace without a ground truth cannot be used.

    Raises:
        ValueError: no rows; rows that cannot be used; a broken file; problems of a task that has no
            worked solutions.
        FileNotFoundError, OSError: as in `read_source`.
    """
    with reading(source or task.name, on_bad_row) as bad_rows:
        rows = None
        if source is not None:
            all_rows = list(read_source(source, split))
            whole = (not _missing(row) for row in all_rows if len(_missing(row)) != 1)
            are_traces = next(whole, True)
            if are_traces:
                traces = list(usable(partial(_from_row, graded=graded), all_rows))
                return _in_template(traces, prompt)
            rows = _problems(all_rows, bad_rows)
        return [_from_solution(solution, prompt) for solution in task.solutions(rows, split)]


def count_questions(traces: Sequence[Trace]) -> int:
    """Returns how many different questions there are; the formatted prompt identifies one."""
    return len({trace.prompt for trace in traces})


def has_wrong_whitespace(response: str) -> bool:
    """True if something other than one space, but only white space or nothing, stands between a
    `</think>` and the `<answer>` after it."""
    return any(match[1] != " " for match in BETWEEN_TAGS.finditer(response))


def fix_whitespace(traces: Sequence[Trace]) -> tuple[list[Trace], int]:
    """Returns the traces with exactly one space between `</think>` and `<answer>`, where there was
    any white space or none, and the number of traces that this changed."""
    texts = [BETWEEN_TAGS.sub("</think> <answer>", trace.response) for trace in traces]
    fixed = [replace(trace, response=text) for trace, text in zip(traces, texts, strict=True)]
    return fixed, sum(new != old for new, old in zip(fixed, traces, strict=True))


def select_examples(traces: Sequence[Trace], num_examples: int | None, seed: int) -> list[Trace]:
    """Returns all traces of the first `num_examples` questions of a shuffle by `seed`, in the order
    of `traces`.

    So of two subsets with one seed, the larger holds the smaller. None: all traces. A ValueError if
    num_examples is below 1, or above the number of questions."""
    if num_examples is None:
        return list(traces)
    questions = list(dict.fromkeys(trace.prompt for trace in traces))
    if not 1 <= num_examples <= len(questions):
        raise ValueError(
            f"num_examples: got {num_examples}, expected at least 1 and at most {len(questions)}, "
            f"as the {len(traces)} traces have so many different questions, or null for all"
        )
    random.Random(seed).shuffle(questions)
    chosen = set(questions[:num_examples])
    return [trace for trace in traces if trace.prompt in chosen]


def keep_correct(
    traces: Sequence[Trace], reward_fn: RewardFn, *, workers: int = 0, deadline_seconds: float = 5.0
) -> list[Trace]:
    """Returns the traces whose response the reward function accepts, in their order.

    A response is accepted if its answer reward (total reward, where there are no parts) is above 0.

    Args:
        traces: each with a ground truth.
        reward_fn: takes a response and its ground truth, returns a dict of floats with `reward`.
        workers: processes that grade, for functions that may hang or crash: a response that cannot
            be graded is then left out, with a warning. 0 grades in this process.
        deadline_seconds: with workers, what one response may take.

    Raises:
        ValueError: a trace without ground truth; a reward function that returns no such dict; no
            response that is accepted.
        RuntimeError: with workers, the function raises on all rows.
    """
    accepted = _grade(traces, partial(_accepts, reward_fn), workers, deadline_seconds)
    left_out = [trace for trace, keep in zip(traces, accepted, strict=True) if not keep]
    repairable = sum(has_wrong_whitespace(trace.response) for trace in left_out)
    hint = (
        f"{repairable} of them have wrong white space between </think> and <answer>; "
        "--fix_whitespace repairs it before grading"
    )
    if len(left_out) == len(traces):
        raise ValueError(
            f"filter_correct: {_name(reward_fn)} accepts none of {len(traces)} responses, expected "
            "at least one; check that the responses have the answer format of the prompt"
            + (f". {hint}" if repairable else "")
        )
    if repairable:
        logger.warning("filter_correct leaves out %d responses; %s", len(left_out), hint)
    return [trace for trace, keep in zip(traces, accepted, strict=True) if keep]


def _grade(
    traces: Sequence[Trace],
    accepts: Callable[[str, Any], bool],
    workers: int,
    deadline_seconds: float,
) -> list[bool]:
    for trace in traces:
        if trace.ground_truth is None:
            raise ValueError(
                f"{trace.where}: field 'ground_truth': got nothing, expected an answer to grade "
                "the response against; add it, or leave filter_correct out"
            )
    rows = [(trace.response, trace.ground_truth) for trace in traces]
    if workers == 0:
        return [accepts(*row) for row in rows]
    with RewardPool(accepts, workers=workers, deadline_s=deadline_seconds) as pool:
        results = pool.map(rows)
    failed = [pair for pair in zip(traces, results, strict=True) if pair[1].failure is not None]
    if failed:
        message = "%d responses could not be graded and are left out, the first: %s (%s: %s)"
        trace, result = failed[0]
        logger.warning(message, len(failed), trace.where, result.failure, result.detail)
    return [result.value is True for result in results]


def _accepts(reward_fn: RewardFn, response: str, ground_truth: Any) -> bool:
    parts, name = reward_fn(response, ground_truth), _name(reward_fn)
    if not isinstance(parts, dict) or "reward" not in parts:
        raise ValueError(f"{name} must return a dict with the key 'reward', got {parts!r}")
    return bool(is_correct(parts))


def _name(reward_fn: Callable[..., Any]) -> str:
    return getattr(reward_fn, "__name__", type(reward_fn).__name__)


def _problems(rows: Iterable[Row], bad_rows: BadRows) -> Iterator[Row]:
    """Yields the rows that are no traces."""
    for row in rows:
        try:
            _check_kind(row, are_traces=False)
        except BadRowError as error:
            bad_rows.add(error)
        else:
            yield row


def _missing(row: Row) -> list[str]:
    # Null is as good as absent: data sets of the Hub fill missing fields so.
    return [field for field in TRACE_FIELDS if row.fields.get(field) is None]


def _check_kind(row: Row, are_traces: bool) -> None:
    missing = _missing(row)
    if len(missing) == 1:
        (other,) = set(TRACE_FIELDS) - set(missing)
        expected = f"a string, as the row has the field {other!r}"
        do = f"add it, or remove {other!r} if the rows are problems with solutions"
        raise row.error(missing[0], "nothing", expected, do)
    if are_traces == bool(missing):
        got, expected = KINDS[not missing], KINDS[are_traces]
        raise BadRowError(
            row.where,
            f"got {got}, expected {expected}, as in the first row; put the two kinds into files of "
            "their own",
            f"row: expected {expected}",
        )


def _from_row(row: Row, graded: bool) -> Trace:
    _check_kind(row, are_traces=True)
    truth = row.fields.get("ground_truth")
    answers = truth if isinstance(truth, list) else [truth]
    if (graded or truth is not None) and not (
        answers and all(isinstance(answer, str) and answer.strip() for answer in answers)
    ):
        expected = "a non-empty string or a list of them"
        do = "write numbers in quotes, or " + (
            "leave filter_correct out" if graded else "remove the field"
        )
        raise row.error("ground_truth", describe(truth), expected, do)
    return Trace(row.text("prompt"), row.text("response"), truth, row.where)


def _from_solution(solution: Solution, prompt: Prompt) -> Trace:
    given = solution.answer
    answer = given if isinstance(given, str) else given[0]
    response = RESPONSE_WRITERS[prompt.answer_format](solution.working.strip(), answer)
    formatted = prompt.format(solution.question)
    if isinstance(prompt, ChatPrompt):  # the assistant's turn has begun, with a line of its own
        opens = prompt.answer_format == "tags" and not formatted.rstrip().endswith("<think>")
        response = "<think>" * opens + response.lstrip("\n")
    return Trace(formatted, response, solution.answer, solution.where)


def _in_template(traces: list[Trace], prompt: Prompt) -> list[Trace]:
    """The traces with the prompts that a chat template makes of those that are not in it yet."""
    given = [replace(trace, prompt=prompt.format_given(trace.prompt)) for trace in traces]
    changed = sum(new != old for new, old in zip(given, traces, strict=True))
    if 0 < changed < len(traces):
        message = "%d of %d prompts of traces were put into the chat template, the others are in it"
        logger.warning(message, changed, len(traces))
    return given


def _write_boxed(working: str, answer: str) -> str:
    return f"\n{working}" + (f"\n\\boxed{{{answer}}}" if extract_boxed(working) is None else "")


# answer_format of a prompt -> a function (working, answer) that writes a response in it.
RESPONSE_WRITERS: dict[str, Callable[[str, str], str]] = {
    "tags": " {} </think> <answer> {} </answer>".format,
    "boxed": _write_boxed,
    "text": "{}\nThe answer is {}.".format,
}
