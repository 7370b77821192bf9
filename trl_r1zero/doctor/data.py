"""The data of a run: what there is, what cannot be used, and what does not fit the context."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any

from trl_r1zero.data.bad_rows import BadRows, reading, usable
from trl_r1zero.data.files import read_jsonl
from trl_r1zero.data.packing import instruction_and_response
from trl_r1zero.data.preferences import load_hh
from trl_r1zero.data.prompts import PLACEHOLDER, Prompt
from trl_r1zero.data.tasks.base import GeneratedTask
from trl_r1zero.data.tokenization import encode_prompts
from trl_r1zero.data.trace_doctor import PROMPT_WHITE_SPACE
from trl_r1zero.data.traces import load_traces
from trl_r1zero.data.white_space import one_spaced, other_white_space
from trl_r1zero.trainers.prompt_rooms import sampled_lengths

from .findings import Finding, ok, problem, problem_of, warning
from .run import Run

Load = Callable[..., Sequence[Any]]  # of a source and `on_bad_row`
Columns = dict[str, Callable[[Any], Any]]
_LISTED, _MOST_IN_COMMAND = 5, 20
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
    # Number of each row that cannot be used -> what is wrong with it.
    bad: Mapping[int, str] = field(default_factory=dict)
    error: str = ""  # why there are no rows
    prompt_tokens: Sequence[int] = ()
    total_tokens: Sequence[int] = ()  # of prompt and response


def read_split(name: str, source: str | None, load: Load, columns: Columns) -> Split:
    """Read all rows that can be used; `columns` gives the value of each column for a row."""
    rows: Sequence[Any] = ()
    error, bad_rows = "", BadRows("skip", source or name)
    try:
        rows = load(source, on_bad_row=bad_rows)
    except Exception as reason:  # also what the hub's libraries raise
        error = str(reason).strip() or type(reason).__name__
    bad = {row.number: row.problem for row in bad_rows.errors}
    if bad and not rows:
        error = error or f"{source or name}: none of the rows can be used"
    numbers = [number for number in range(1, bad_rows.read + 1) if number not in bad]
    # A source that leaves out rows of other kinds does not number them.
    numbers = numbers if len(numbers) == len(rows) else list(range(1, len(rows) + 1))
    values = {column: [value(row) for row in rows] for column, value in columns.items()}
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
        load = partial(load_traces, task, prompt, graded=run.data.filter_correct)
        trace: Columns = {"prompts": attrgetter("prompt"), "responses": attrgetter("response")}
        splits = [read_split("train_data", train, load, trace | {"truths": truths})]
        if validation is None and not isinstance(task, GeneratedTask):
            return splits
    else:
        splits = [read_split("train_data", train, partial(task.load, split="train"), example)]
    sets = run.data.validation_sets(task, prompt).items()
    return splits + [
        read_split(".".join(filter(None, ("eval_data", name))), source, load, example)
        for name, (source, load) in sets
    ]


def _load_pairs(source: str | None, on_bad_row: BadRows) -> list[tuple[str, str]]:
    pairs = load_hh(source or "", on_bad_row)
    return [(pair.instruction, max(pair.chosen, pair.rejected, key=len)) for pair in pairs]


def _load_instructions(source: str | None, on_bad_row: BadRows) -> list[tuple[str, str]]:
    with reading(source or "", on_bad_row):
        return list(usable(instruction_and_response, read_jsonl(source or "")))


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


def check_rows(split: Split, on_bad_row: str = "error") -> Iterator[Finding]:
    """Whether there are rows, and all can be used; those that cannot be are left out or stop a run,
    by the recipe's `on_bad_row`."""
    where, number = split.source or "the task itself", len(split.bad)
    if split.prompts:
        yield ok(f"data/{split.name}", f"{split.name}: {len(split.prompts):,} rows from {where}")
    if split.bad:
        listed = [f"row {line}: {message}" for line, message in split.bad.items()][:_LISTED]
        more = [f"and {number - _LISTED} more"] if number > _LISTED else []
        skip = on_bad_row == "skip"
        them = "it" if number == 1 else "them"
        does = f"leaves {them} out" if skip else f"does not start with {them}"
        edit = f"sed -i '{';'.join(f'{line}d' for line in split.bad)}' {split.source}"
        remove = f" ({edit})" if where.endswith(".jsonl") and number <= _MOST_IN_COMMAND else ""
        yield (warning if skip else problem)(
            f"data/{split.name}_rows",
            f"{split.name} ({where}) has {number} {'row' if number == 1 else 'rows'} that cannot "
            f"be used; a run {does}:\n" + "\n".join(listed + more),
            do=f"correct these rows, or remove them{remove}"
            + ("" if skip else ", or set on_bad_row: skip"),
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


def check_white_space(
    run: Run, splits: Sequence[Split], prompt: Prompt | None
) -> Iterator[Finding]:
    """Whether prompts that are given, not formatted, are those of the run's prompt."""
    if run.method != "sft" or prompt is None:
        return
    train, *others = splits
    asked = [text for split in others for text in split.prompts]
    if different := other_white_space(train.prompts, prompt, asked):
        number, example = next(iter(different.items()))
        what, advice = PROMPT_WHITE_SPACE
        found = f"{train.name}: {len(different):,} of {len(train.prompts):,} rows have {what}"
        found += f"; row {train.lines[number]:,}: {example}"
        yield warning(f"data/{train.name}_white_space", found, do=advice)


def check_overlap(train: Split, validation: Split) -> Iterator[Finding]:
    """Whether validation asks what was trained on."""
    trained, prompts = set(map(one_spaced, train.prompts)), validation.prompts
    both = _lines_where(validation, [one_spaced(prompt) in trained for prompt in prompts])
    if prompts and not both:
        of_set = validation.name.removeprefix("eval_data.") if "." in validation.name else ""
        found = f"no validation problem{of_set and f' of {of_set}'} is among the training problems"
        yield ok("data/overlap", found)
    elif both:
        found = (
            f"{len(both):,} of {len(prompts):,} validation problems are among the training "
            f"problems (rows {_listed(both)} of {validation.name})"
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
    lengths = sampled_lengths(run.recipe.instances[0])
    for split in splits:
        if not split.prompt_tokens:
            continue
        key = split.name.partition(".")[0]  # without the name of one of several validation sets
        if key in lengths:
            yield _check_sampled(run, split, limit, whose, *lengths[key])
        elif split.responses:
            yield from _check_given(run, split, limit)


def _check_sampled(
    run: Run, split: Split, limit: int | None, whose: str, new: int, setting: str, first: int | None
) -> Finding:
    """Rows whose completions are sampled; `new` tokens of each, for the `first` rows."""
    tokens, where = split.prompt_tokens[:first], f"data/{split.name}_lengths"
    facts = f"{_prompts_in_words(split)}, and {new:,} new ones at most"
    if limit is None:
        return ok(where, facts)
    too_long = _lines_where(split, [size + new > limit for size in tokens])
    if not too_long:
        return ok(where, f"{facts}: within {whose} of {limit:,}")
    skip = run.values["on_bad_row"] == "skip" and len(too_long) < len(tokens)
    does = "; a run leaves them out" if skip else ""
    return (warning if skip else problem)(
        where,
        f"{facts}: more than {whose} of {limit:,} for {len(too_long):,} rows ({_listed(too_long)})"
        + does,
        f"{max(tokens) + new:,} tokens",
        f"raise max_model_len, lower {setting}, or "
        + ("remove these rows" if skip else "set on_bad_row: skip, which leaves these rows out"),
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
