"""The data of a run: what there is, what cannot be used, and what does not fit the context."""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

from trl_r1zero.data.files import read_jsonl
from trl_r1zero.data.preferences import load_hh
from trl_r1zero.data.prompts import PLACEHOLDER, Prompt
from trl_r1zero.data.tasks.base import GeneratedTask
from trl_r1zero.data.tokenization import encode_prompts
from trl_r1zero.data.traces import load_traces

from .findings import Finding, ok, problem, problem_of, warning
from .run import Run

# A file with more broken rows than this is broken as a whole.
MOST_BAD_ROWS = 20
_MOST_BYTES = 200 * 2**20

Load = Callable[[str | None], Sequence[Any]]
Columns = dict[str, Callable[[Any], Any]]
_LISTED = 5
_PAIR: Columns = {"prompts": itemgetter(0), "responses": itemgetter(1)}


@dataclass(frozen=True)
class Split:
    """Training or validation data, row by row; what rows do not have is empty."""

    name: str  # the recipe's key for it
    source: str | None = None  # None for what a task generates
    prompts: Sequence[str] = ()
    responses: Sequence[str] = ()
    truths: Sequence[Any] = ()
    lines: Sequence[int] = ()  # the number of each row in its source, from 1
    # Line of each row that cannot be used, at which a run would stop -> what is wrong with it.
    bad: Mapping[int, str] = field(default_factory=dict)
    error: str = ""  # why there are no rows
    prompt_tokens: Sequence[int] = ()
    total_tokens: Sequence[int] = ()  # of prompt and response


def read_split(name: str, source: str | None, load: Load, columns: Columns) -> Split:
    """Read all rows that can be used.

    `load` raises an error that begins with `path:line:` at the first row that is wrong; the row is
    taken out, and the rest is read again. `columns` gives the value of each column for a row.
    """
    rows: Sequence[Any] = ()
    bad: dict[int, str] = {}
    path = Path(source or "").expanduser()
    json_lines = path.suffix == ".jsonl" and path.is_file() and path.stat().st_size <= _MOST_BYTES
    lines = path.read_bytes().splitlines(keepends=True) if json_lines else []
    numbers = list(range(1, len(lines) + 1))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        while True:
            try:
                rows, error = load(str(copy) if bad else source), ""
                break
            except Exception as reason:  # also what the hub's libraries raise
                error = str(reason).strip() or type(reason).__name__
                error = error.replace(str(copy), str(path))
            match = re.match(rf"{re.escape(str(path))}:(\d+):\s*(.*)", error)
            if match is None or not json_lines or len(bad) == MOST_BAD_ROWS:
                break
            number = numbers.pop(int(match[1]) - 1)
            bad[number] = match[2]
            if not numbers:
                error = f"{path}: none of the rows can be used"
                break
            copy.write_bytes(b"".join(lines[number - 1] for number in numbers))
    values = {column: [value(row) for row in rows] for column, value in columns.items()}
    numbers = numbers if bad else list(range(1, len(rows) + 1))
    return Split(name, source, lines=numbers, bad=bad, error=error, **values)


def load_prompt(run: Run, tokenizer: Any) -> tuple[Prompt | None, list[Finding]]:
    """The prompt of a run's task, and how it looks with a chat template; None without a task."""
    if not hasattr(run.data, "load_task"):
        return None, []
    _, prompt = run.data.load_task()
    if not prompt.needs_tokenizer:
        return prompt, []
    try:
        prompt = prompt.for_tokenizer(tokenizer)
        return prompt, [ok("data/prompt", f"prompt {prompt.name}: {prompt.format(PLACEHOLDER)!r}")]
    except ValueError as error:
        # The rest can be looked at without the chat template.
        plain = Prompt(prompt.name, prompt.template, prompt.stop, prompt.answer_format)
        return plain, [problem_of("data/prompt", error)]


def load_data(run: Run, prompt: Prompt | None = None) -> list[Split]:
    """Training and, where a run validates, validation data, with all rows that can be used, as
    `prompt` formats them, or else the recipe's."""
    train, validation = run.data.train_data, getattr(run.data, "eval_data", None)
    if run.method == "dpo":
        return [read_split("train_data", train, _load_pairs, _PAIR)]
    if run.method == "instruction_tuning":
        sources = {"train_data": train, "eval_data": validation}
        return [
            read_split(name, source, _load_instructions, _PAIR)
            for name, source in sources.items()
            if source is not None
        ]
    task, given = run.data.load_task()
    prompt = prompt or given
    truths = attrgetter("ground_truth")
    example: Columns = {"prompts": lambda row: prompt.format(row.question), "truths": truths}
    if run.method == "sft":
        load = partial(load_traces, task, prompt)
        trace: Columns = {"prompts": attrgetter("prompt"), "responses": attrgetter("response")}
        splits = [read_split("train_data", train, load, trace | {"truths": truths})]
        if validation is None and not isinstance(task, GeneratedTask):
            return splits
    else:
        splits = [read_split("train_data", train, partial(task.load, split="train"), example)]
    load = partial(task.load, split="validation")
    return [*splits, read_split("eval_data", validation, load, example)]


def _load_pairs(source: str | None) -> list[tuple[str, str]]:
    pairs = load_hh(source or "")
    return [(pair.instruction, max(pair.chosen, pair.rejected, key=len)) for pair in pairs]


def _load_instructions(source: str | None) -> list[tuple[str, str]]:
    return [(row.text("prompt"), row.text("response")) for row in read_jsonl(source or "")]


def with_lengths(split: Split, tokenizer: Any) -> Split:
    """The data with the tokens of its rows."""
    if not split.prompts:
        return split
    prompts = [len(ids) for ids in encode_prompts(split.prompts, tokenizer)]
    totals = prompts
    if split.responses:
        responses = tokenizer(list(split.responses), add_special_tokens=False)["input_ids"]
        totals = [size + len(ids) for size, ids in zip(prompts, responses, strict=True)]
    return replace(split, prompt_tokens=prompts, total_tokens=totals)


def longest_row(run: Run, train: Split) -> int | None:
    """Tokens of the longest row that is trained on; None where it is not known."""
    if run.method == "instruction_tuning":
        return int(run.data.seq_length)
    if not train.prompt_tokens:
        return None
    if run.method in ("grpo", "expert_iteration"):
        return max(train.prompt_tokens) + run.values["max_completion_length"]
    longest = min(max(train.total_tokens), run.values.get("max_length") or 10**9)
    return longest * 2 if run.method == "dpo" else longest  # a pair is two sequences


def check_rows(split: Split) -> Iterator[Finding]:
    """Whether there are rows, and all can be used."""
    where, number = split.source or "the task itself", len(split.bad)
    if split.prompts:
        yield ok(f"data/{split.name}", f"{split.name}: {len(split.prompts):,} rows from {where}")
    if split.bad:
        listed = [f"row {line}: {message}" for line, message in split.bad.items()][:_LISTED]
        more = [f"and {number - _LISTED} more"] if number > _LISTED else []
        yield problem(
            f"data/{split.name}_rows",
            f"{split.name} ({where}) has {number} {'row' if number == 1 else 'rows'} that cannot "
            "be used, and a run stops at the first:\n" + "\n".join(listed + more),
            do="correct these lines, or remove them (sed -i "
            f"'{';'.join(f'{line}d' for line in split.bad)}' {split.source})",
        )
    if split.error:
        yield problem(f"data/{split.name}", f"{split.name}: {split.error}")


def check_duplicates(split: Split) -> Iterator[Finding]:
    """Whether rows are there more than once."""
    rows = list(zip(split.prompts, split.responses or split.prompts, strict=True))
    number = Counter(rows)
    if len(number) < len(rows):
        first = _lines_where(split, [number[row] > 1 for row in rows])[0]
        found = (
            f"{split.name}: {len(rows) - len(number):,} rows repeat an earlier one; the first that "
            f"is there twice is row {first:,}"
        )
        advice = "remove them, unless they are meant to weigh more"
        yield warning(f"data/{split.name}_duplicates", found, do=advice)


def check_overlap(train: Split, validation: Split) -> Iterator[Finding]:
    """Whether validation asks what was trained on."""
    trained, prompts = set(train.prompts), validation.prompts
    both = _lines_where(validation, [prompt in trained for prompt in prompts])
    if prompts and not both:
        yield ok("data/overlap", "no validation problem is among the training problems")
    elif both:
        found = (
            f"{len(both):,} of {len(prompts):,} validation problems are among the training "
            f"problems (rows {_listed(both)} of eval_data)"
        )
        advice = "remove them from one of the two, or accuracy is too high"
        yield warning("data/overlap", found, do=advice)


def check_context(run: Run, splits: Sequence[Split], context: int | None) -> Iterator[Finding]:
    """Whether prompts, with the tokens that follow, fit the model's context and the server's."""
    limit, whose = context, "the model's context"
    if run.own_server and (wanted := run.values["vllm_server"].get("max_model_len")):
        limit, whose = wanted, "the server's max_model_len"
        if context is not None and wanted > context:
            found = (
                f"vllm_server has max_model_len {wanted:,}, but the model's context is {context:,} "
                "tokens"
            )
            yield problem("data/max_model_len", found, f"at most {context:,}", "lower it")
    for split in splits:
        if not split.prompt_tokens:
            continue
        if run.samples and (split.name == "eval_data" or not split.responses):
            yield _check_sampled(run, split, limit, whose)
        else:
            yield from _check_given(run, split, limit)


def _check_sampled(run: Run, split: Split, limit: int | None, whose: str) -> Finding:
    """Rows whose completions are sampled."""
    tokens, new, where = split.prompt_tokens, run.new_tokens, f"data/{split.name}_lengths"
    facts = f"{_prompts_in_words(split)}, and {new:,} new ones at most"
    if limit is None:
        return ok(where, facts)
    too_long = _lines_where(split, [size + new > limit for size in tokens])
    if not too_long:
        return ok(where, f"{facts}: within {whose} of {limit:,}")
    level = problem if run.values.get("use_vllm") else warning
    return level(
        where,
        f"{facts}: more than {whose} of {limit:,} for {len(too_long):,} rows ({_listed(too_long)})",
        f"{max(tokens) + new:,} tokens",
        "raise max_model_len, lower max_completion_length, or remove these rows",
    )


def _check_given(run: Run, split: Split, limit: int | None) -> Iterator[Finding]:
    """Rows with responses: those beyond `max_length` are dropped, as the recipe says."""
    totals = split.total_tokens
    bound = min(filter(None, (run.values.get("max_length"), limit)), default=max(totals))
    beyond = sum(total > bound for total in totals)
    if beyond and run.method != "instruction_tuning":
        yield warning(
            f"data/{split.name}_overlong",
            f"{split.name}: {beyond:,} of {len(totals):,} rows have more than {bound:,} tokens "
            f"(the longest {max(totals):,}); overlong: {run.values.get('overlong')}",
            do="raise max_length, if they are to be trained on",
        )
    yield ok(f"data/{split.name}_lengths", _prompts_in_words(split))


def _prompts_in_words(split: Split) -> str:
    tokens = sorted(split.prompt_tokens)
    median = tokens[len(tokens) // 2]
    return f"{split.name}: prompts of {median:,} tokens (median) to {tokens[-1]:,}"


def _lines_where(split: Split, chosen: Sequence[bool]) -> list[int]:
    return [line for line, take in zip(split.lines, chosen, strict=False) if take]


def _listed(lines: Sequence[int]) -> str:
    return ", ".join(map(str, lines[:_LISTED])) + (" ..." if len(lines) > _LISTED else "")
