"""The data of a run: what there is, what cannot be used, and what does not fit the context."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trl_r1zero.data.files import read_jsonl
from trl_r1zero.data.preferences import load_hh
from trl_r1zero.data.tasks.base import GeneratedTask
from trl_r1zero.data.traces import load_traces

from .findings import Finding, ok, problem, warning
from .rows import BadRow, ReadRows, read_rows
from .run import Run

_SHOWN = 5


@dataclass(frozen=True)
class Split:
    """Training or validation data.

    Attributes:
        name: The recipe's key for it.
        source: Where it is from; None for what a task generates.
        prompts: What the model reads, row by row.
        responses: What it is to say, where the rows say so; otherwise empty.
        truths: What answers are graded against, where the rows have it; otherwise empty.
        bad: Rows that cannot be used.
        error: Why there are no rows.
    """

    name: str
    source: str | None
    prompts: Sequence[str] = ()
    responses: Sequence[str] = ()
    truths: Sequence[Any] = ()
    bad: tuple[BadRow, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Data:
    """The data of a run; `eval` is None where there is no validation."""

    train: Split
    eval: Split | None = None
    # Tokens of each row: of its prompt, and of prompt and response; empty without a tokenizer.
    prompt_tokens: dict[str, list[int]] = field(default_factory=dict)
    total_tokens: dict[str, list[int]] = field(default_factory=dict)

    @property
    def splits(self) -> list[Split]:
        return [self.train, *([self.eval] if self.eval else [])]


def load_data(run: Run) -> Data:
    """Read all rows; nothing is raised for what is wrong with them."""
    readers = {"dpo": _load_pairs, "instruction_tuning": _load_instructions}
    return readers.get(run.method, _load_task)(run)


def _split(name: str, read: ReadRows[Any], **columns: Sequence[Any]) -> Split:
    return Split(name, read.source, bad=read.bad, error=read.error, **columns)


def _load_task(run: Run) -> Data:
    task, prompt = run.data.load_task()
    if run.method == "sft":
        traces = read_rows(lambda source: load_traces(task, prompt, source), run.data.train_data)
        train = _split(
            "train_data",
            traces,
            prompts=[trace.prompt for trace in traces.rows],
            responses=[trace.response for trace in traces.rows],
            truths=[trace.ground_truth for trace in traces.rows],
        )
        if run.data.eval_data is None and not isinstance(task, GeneratedTask):
            return Data(train)
    else:
        examples = read_rows(lambda source: task.load(source, "train"), run.data.train_data)
        train = _of_examples("train_data", examples, prompt)
    examples = read_rows(lambda source: task.load(source, "validation"), run.data.eval_data)
    return Data(train, _of_examples("eval_data", examples, prompt))


def _of_examples(name: str, read: ReadRows[Any], prompt: Any) -> Split:
    return _split(
        name,
        read,
        prompts=[prompt.format(example.question) for example in read.rows],
        truths=[example.ground_truth for example in read.rows],
    )


def _load_pairs(run: Run) -> Data:
    pairs = read_rows(lambda source: load_hh(source or ""), run.data.train_data)
    longer = [max(pair.chosen, pair.rejected, key=len) for pair in pairs.rows]
    prompts = [pair.instruction for pair in pairs.rows]
    return Data(_split("train_data", pairs, prompts=prompts, responses=longer))


def _load_instructions(run: Run) -> Data:
    def load(source: str | None) -> list[tuple[str, str]]:
        return [(row.text("prompt"), row.text("response")) for row in read_jsonl(source or "")]

    splits = []
    for name in ("train_data", "eval_data"):
        source = getattr(run.data, name)
        if source is not None:
            read = read_rows(load, source)
            prompts = [prompt for prompt, _ in read.rows]
            splits.append(
                _split(name, read, prompts=prompts, responses=[row[1] for row in read.rows])
            )
    return Data(splits[0], splits[1] if len(splits) > 1 else None)


def with_lengths(data: Data, tokenizer: Any) -> Data:
    """The data with the tokens of its rows."""
    prompt_tokens, total_tokens = {}, {}
    for split in data.splits:
        if not split.prompts:
            continue
        prompts = [len(ids) for ids in tokenizer(list(split.prompts))["input_ids"]]
        prompt_tokens[split.name] = total_tokens[split.name] = prompts
        if split.responses:
            texts = list(split.responses)
            responses = tokenizer(texts, add_special_tokens=False)["input_ids"]
            total_tokens[split.name] = [
                prompt + len(response) for prompt, response in zip(prompts, responses, strict=True)
            ]
    return Data(data.train, data.eval, prompt_tokens, total_tokens)


# Checks


def check_rows(split: Split) -> list[Finding]:
    """Whether there are rows, and all can be used."""
    where = split.source or "the task itself"
    findings = []
    if split.bad:
        shown = "\n".join(f"row {row.line}: {row.message}" for row in split.bad[:_SHOWN])
        more = len(split.bad) - _SHOWN
        findings.append(
            problem(
                "data",
                f"{split.name}_rows",
                f"{split.name} ({where}) has {len(split.bad)} "
                f"{'row' if len(split.bad) == 1 else 'rows'} that cannot be used, and a run stops "
                f"at the first:\n{shown}" + (f"\nand {more} more" if more > 0 else ""),
                "",
                "correct these lines, or remove them (sed -i "
                f"'{';'.join(f'{row.line}d' for row in split.bad)}' {split.source})",
            )
        )
    if split.error:
        findings.append(problem("data", split.name, f"{split.name}: {split.error}"))
    elif split.prompts:
        findings.insert(
            0, ok("data", split.name, f"{split.name}: {len(split.prompts):,} rows from {where}")
        )
    return findings


def check_duplicates(split: Split) -> list[Finding]:
    """Whether rows are there more than once."""
    rows = list(zip(split.prompts, split.responses or split.prompts, strict=True))
    repeated = {row: number for row, number in Counter(rows).items() if number > 1}
    if not repeated:
        return []
    extra = sum(repeated.values()) - len(repeated)
    first = next(number for number, row in enumerate(rows, start=1) if row in repeated)
    return [
        warning(
            "data",
            f"{split.name}_duplicates",
            f"{split.name}: {extra:,} rows repeat an earlier one; the first that is there twice is "
            f"the {first:,}. of the rows",
            "",
            "remove them, unless they are meant to weigh more",
        )
    ]


def check_overlap(data: Data) -> list[Finding]:
    """Whether validation asks what was trained on."""
    if data.eval is None or not data.eval.prompts:
        return []
    trained = set(data.train.prompts)
    both = [number for number, prompt in enumerate(data.eval.prompts, 1) if prompt in trained]
    if not both:
        return [ok("data", "overlap", "no validation problem is among the training problems")]
    shown = ", ".join(map(str, both[:_SHOWN]))
    return [
        warning(
            "data",
            "overlap",
            f"{len(both):,} of {len(data.eval.prompts):,} validation problems are among the "
            f"training problems (rows {shown}{' ...' if len(both) > _SHOWN else ''} of eval_data)",
            "",
            "remove them from one of the two, or accuracy is too high",
        )
    ]


def check_context(run: Run, data: Data, context: int | None) -> list[Finding]:
    """Whether prompts, with the tokens that are to follow, fit the model and the server.

    Args:
        run: The run.
        data: With lengths.
        context: Of the model, in tokens.
    """
    findings = []
    limit, whose = context, "the model's context"
    if run.own_server and (wanted := run.values["vllm_server"].get("max_model_len")):
        limit, whose = wanted, "the server's max_model_len"
        if context is not None and wanted > context:
            findings.append(
                problem(
                    "data",
                    "max_model_len",
                    f"vllm_server has max_model_len {wanted:,}, but the model's context is "
                    f"{context:,} tokens",
                    f"at most {context:,}",
                    "lower it",
                )
            )
    for split in data.splits:
        tokens = data.prompt_tokens.get(split.name)
        if tokens:
            findings += _check_lengths(run, data, split, tokens, limit, whose)
    return findings


def _check_lengths(
    run: Run, data: Data, split: Split, tokens: list[int], limit: int | None, whose: str
) -> list[Finding]:
    longest = max(tokens)
    typical = sorted(tokens)[len(tokens) // 2]
    facts = f"{split.name}: prompts of {typical:,} tokens (median) to {longest:,}"
    sampled = run.samples and (split.name == "eval_data" or not split.responses)
    if not sampled:
        return [
            *_check_row_lengths(run, data, split, limit),
            ok("data", f"{split.name}_lengths", facts),
        ]
    facts += f", and {run.new_tokens:,} new ones at most"
    too_long = [n for n, size in enumerate(tokens, 1) if limit and size + run.new_tokens > limit]
    if not too_long:
        room = "" if limit is None else f": within {whose} of {limit:,}"
        return [ok("data", f"{split.name}_lengths", facts + room)]
    shown = ", ".join(map(str, too_long[:_SHOWN]))
    make = problem if run.values.get("use_vllm") else warning
    return [
        make(
            "data",
            f"{split.name}_lengths",
            f"{facts}: more than {whose} of {limit:,} for {len(too_long):,} rows ({shown}"
            f"{' ...' if len(too_long) > _SHOWN else ''})",
            f"{longest + run.new_tokens:,} tokens",
            "raise max_model_len, lower max_completion_length, or remove these rows",
        )
    ]


def _check_row_lengths(run: Run, data: Data, split: Split, limit: int | None) -> list[Finding]:
    """Rows with responses: those beyond `max_length` are dropped, as the recipe says."""
    totals, most = data.total_tokens[split.name], run.values.get("max_length")
    bound = min(filter(None, (most, limit)), default=None)
    beyond = sum(bound is not None and total > bound for total in totals)
    if not beyond or run.method == "instruction_tuning":
        return []
    return [
        warning(
            "data",
            f"{split.name}_overlong",
            f"{split.name}: {beyond:,} of {len(totals):,} rows have more than {bound:,} tokens "
            f"(the longest {max(totals):,}); overlong: {run.values.get('overlong')}",
            "",
            "raise max_length, if they are to be trained on",
        )
    ]


def longest_row(run: Run, data: Data) -> int | None:
    """Tokens of the longest row that is trained on; None where it is not known."""
    if run.method == "instruction_tuning":
        return int(run.data.seq_length)
    tokens = data.prompt_tokens.get("train_data")
    if not tokens:
        return None
    if run.method in ("grpo", "expert_iteration"):
        return max(tokens) + run.values["max_completion_length"]
    most = run.values.get("max_length")
    longest = max(data.total_tokens["train_data"])
    # A pair is two sequences.
    return (2 if run.method == "dpo" else 1) * (min(longest, most) if most else longest)
