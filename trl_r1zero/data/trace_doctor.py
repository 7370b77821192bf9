"""What is wrong with traces, and how long they are: a report before they are trained on."""

import json
import math
import statistics
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from typing import Any

from trl_r1zero.data.prompts import Prompt
from trl_r1zero.data.traces import BETWEEN_TAGS, Trace, count_questions, has_wrong_whitespace
from trl_r1zero.data.white_space import one_spaced, other_white_space

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
SHOWN_PLACES = 3
AROUND = 25  # characters of an excerpt on either side of a fault
MAX_BINS = 10
WIDTH = 100
WHERE_WIDTH = 40
BAR_WIDTH = 40


@dataclass(frozen=True)
class Place:
    """A row with a fault: where it is, and the text around the fault as Python writes it (which
    shows white space, and steers no terminal), or another sign of the fault."""

    where: str
    excerpt: str


@dataclass(frozen=True)
class Finding:
    """One kind of fault: what is wrong, what to do about it, how many rows have it (0 for a fault
    that was looked for and not found), and the first few of them."""

    problem: str
    advice: str
    rows: int
    places: tuple[Place, ...]


@dataclass(frozen=True)
class LengthSummary:
    """Of lengths in tokens; `percentile_95` is the smallest length that at least 95 % of the rows
    do not exceed."""

    min: int
    median: float
    percentile_95: int
    max: int


@dataclass(frozen=True)
class TraceReport:
    """What `examine_traces` found."""

    # rows, questions: how many traces there are, and how many different prompts.
    rows: int
    questions: int
    findings: dict[str, Finding]  # every fault that was looked for, found or not, by its name
    lengths: dict[str, LengthSummary]  # of `prompt`, `response` and `total`, in tokens
    # (from, to, rows) of total lengths; both ends belong to the bin, and the last one takes in the
    # few longest rows.
    histogram: tuple[tuple[int, int, int], ...]

    @property
    def healthy(self) -> bool:
        """True if no fault was found."""
        return not any(finding.rows for finding in self.findings.values())

    def to_dict(self) -> dict[str, Any]:
        """The report as data that JSON can hold."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return data

    def to_text(self) -> str:
        """The report for a terminal, at most 100 columns wide: faults first, then the facts."""
        lines = [f"Traces: {self.rows:,} rows, different questions: {self.questions:,}"]
        for finding in self.findings.values():
            if finding.rows:
                number = "1 row" if finding.rows == 1 else f"{finding.rows:,} rows"
                share = 100 * finding.rows / self.rows
                lines.append(f"WARNING: {number} ({share:.1f} %) with {finding.problem}")
                for place in finding.places:
                    line = f"    {_end_of_path(place.where)}: {place.excerpt}"
                    lines.append(line if len(line) <= WIDTH else line[: WIDTH - 3] + "...")
                lines += _wrapped(finding.advice)
        if healthy := [finding.problem for finding in self.findings.values() if not finding.rows]:
            lines += _wrapped(f"Not found: {'; '.join(healthy)}.")
        lines.append("Tokens          min    median  95th perc.       max")
        for name, of in self.lengths.items():
            lines.append(
                f"  {name:<8}{of.min:>9,}{of.median:>10,.7g}{of.percentile_95:>12,}{of.max:>10,}"
            )
        lines.append("Rows by total tokens")
        most = max(rows for _, _, rows in self.histogram)
        labels = [f"{low:,} - {end:,}" for low, end, _ in self.histogram]
        for label, (_, _, rows) in zip(labels, self.histogram, strict=True):
            # A bin with a row in it shows at least one mark.
            bar = "#" * math.ceil(BAR_WIDTH * rows / most)
            lines.append(f"  {label:>{max(map(len, labels))}}  {rows:>9,}  {bar}".rstrip())
        return "\n".join(lines)


def examine_traces(
    traces: Sequence[Trace],
    lengths: Sequence[tuple[int, int]],
    *,
    answer_format: str,
    max_length: int | None,
    eval_prompts: Sequence[str] = (),
    prompt: Prompt | None = None,
    read_back: Sequence[str] = (),
) -> TraceReport:
    """Looks for the known faults of traces; nothing is changed.

    Args:
        traces: at least one.
        lengths: tokens of the prompt and tokens of the response, for each trace.
        answer_format: of the prompt; tags are looked at for "tags" only.
        max_length: prompt and response together should have at most so many tokens. None: no limit.
        eval_prompts: formatted prompts of the validation set. Empty: no overlap is looked for.
        prompt: what formats the validation's questions. None: white space is not compared.
        read_back: the text of each response's tokens. Empty: it is not looked at.

    Raises:
        ValueError: no traces, or not one pair of lengths for each.
    """
    if not traces:
        raise ValueError("got no traces, expected at least one")
    if len(lengths) != len(traces):
        raise ValueError(f"got {len(lengths)} lengths for {len(traces)} traces, expected as many")
    checks = {"empty_response": EMPTY_RESPONSE} | (TAG_CHECKS if answer_format == "tags" else {})
    findings = {
        name: _finding(
            problem,
            advice,
            [(trace, repr(text)) for trace in traces if (text := check(trace)) is not None],
        )
        for name, (problem, advice, check) in checks.items()
    }
    findings["duplicates"] = _duplicates(traces)
    if prompt is not None:
        findings["prompt_white_space"] = _white_space(traces, prompt, eval_prompts)
    if known := set(map(one_spaced, eval_prompts)):
        findings["in_validation"] = _in_validation(traces, known)
    findings |= _read_otherwise(traces, read_back)
    totals = [prompt + response for prompt, response in lengths]
    if max_length is not None:
        findings["too_long"] = _too_long(traces, totals, max_length)
    prompts, responses = zip(*lengths, strict=True)
    by_name = {"prompt": prompts, "response": responses, "total": totals}
    return TraceReport(
        rows=len(traces),
        questions=count_questions(traces),
        findings=findings,
        lengths={name: _summary(values) for name, values in by_name.items()},
        histogram=_histogram(totals),
    )


def _finding(problem: str, advice: str, found: Sequence[tuple[Trace, str]]) -> Finding:
    places = tuple(Place(trace.where, excerpt) for trace, excerpt in found[:SHOWN_PLACES])
    return Finding(problem, advice, len(found), places)


# Takes a trace and returns an excerpt, None if the trace is fine.
Check = Callable[[Trace], str | None]


def _empty(trace: Trace) -> str | None:
    return None if trace.response.strip() else trace.response[: 2 * AROUND]


def _lacks(tag: str, trace: Trace) -> str | None:
    return None if tag in trace.response else trace.response[-2 * AROUND :]


def _wrong_whitespace(trace: Trace) -> str | None:
    if not has_wrong_whitespace(trace.response):
        return None
    wrong = next(match for match in BETWEEN_TAGS.finditer(trace.response) if match[1] != " ")
    return _around(trace.response, wrong.start(), wrong.end())


def _tags_apart(trace: Trace) -> str | None:
    text = trace.response
    if "</think>" not in text or "<answer>" not in text or BETWEEN_TAGS.search(text):
        return None
    return _around(text, text.index("</think>"), text.index("</think>") + len("</think>"))


def _repeated_tag(trace: Trace) -> str | None:
    for tag in TAGS:
        # The prompt may end in <think>: then any in the response is a second one.
        opened = tag == "<think>" and trace.prompt.rstrip().endswith(tag)
        if trace.response.count(tag) + opened > 1:
            start = trace.response.rindex(tag)
            return _around(trace.response, start, start + len(tag))
    return None


def _text_after(trace: Trace) -> str | None:
    before, tag, after = trace.response.rpartition("</answer>")
    if not tag or not after.strip():
        return None
    return _around(trace.response, len(before), len(before + tag))


def _around(text: str, start: int, end: int) -> str:
    """The text around a fault, shortened by "..."."""
    left = max(0, start - AROUND)
    right = min(len(text), end + AROUND, left + 4 * AROUND)
    return ("..." if left else "") + text[left:right] + ("..." if right < len(text) else "")


PROMPT_WHITE_SPACE = (
    "a prompt that differs from the run's own in white space alone",
    "The model learns to answer one text and is asked another. Write these prompts as the run's, "
    "or give a prompt file with their white space (prompt: path).",
)
_NOTHING = "Remove the rows: there is nothing to learn in them."
EMPTY_RESPONSE: tuple[str, str, Check] = ("an empty response", _NOTHING, _empty)
_MISSING = "The reward is 0 without it. Correct the rows, or --filter_correct leaves them out."
TAG_CHECKS: dict[str, tuple[str, str, Check]] = {
    "no_think_end": ("a missing </think>", _MISSING, partial(_lacks, "</think>")),
    "no_answer": ("a missing <answer>", _MISSING, partial(_lacks, "<answer>")),
    "no_answer_end": ("a missing </answer>", _MISSING, partial(_lacks, "</answer>")),
    "wrong_whitespace": (
        "something other than one space between </think> and <answer>",
        "The reward is 0 for such a response. --fix_whitespace repairs them.",
        _wrong_whitespace,
    ),
    "tags_apart": (
        "text between </think> and <answer>, or the two in the wrong order",
        "The reward is 0 for such a response. Correct the rows, or --filter_correct leaves them "
        "out.",
        _tags_apart,
    ),
    "repeated_tag": (
        "a tag more than once",
        "Only what follows the last <answer> is graded. Correct or remove the rows; a <think> that "
        "the prompt ends in does not belong in the response.",
        _repeated_tag,
    ),
    "text_after_answer": (
        "text after </answer>",
        "A prompt that stops at </answer> never lets the model write it. Cut it off.",
        _text_after,
    ),
}


def _duplicates(traces: Sequence[Trace]) -> Finding:
    first: dict[tuple[str, str], str] = {}
    found = []
    for trace in traces:
        key = (trace.prompt, trace.response)
        if key in first:
            found.append((trace, f"as {_end_of_path(first[key])}"))
        first.setdefault(key, trace.where)
    advice = "They weigh double in training. Remove them, unless that is meant."
    return _finding("the prompt and response of an earlier row again", advice, found)


def _read_otherwise(traces: Sequence[Trace], texts: Sequence[str]) -> dict[str, Finding]:
    """Responses that the tokenizer changes, a finding only if there are any."""
    pairs = zip(traces, texts, strict=bool(texts))
    found = [(trace, repr(text[: 2 * AROUND])) for trace, text in pairs if text != trace.response]
    advice = (
        "The model learns what its tokens say, which is shown: the tokenizer puts a space before a "
        "response, or normalises characters. Write the responses so, or take another tokenizer."
    )
    problem = "a response whose tokens read otherwise than its text"
    return {"read_otherwise": _finding(problem, advice, found)} if found else {}


def _too_long(traces: Sequence[Trace], totals: Sequence[int], max_length: int) -> Finding:
    pairs = zip(traces, totals, strict=True)
    long = [(trace, f"{total:,} tokens") for trace, total in pairs if total > max_length]
    advice = "Raise max_length if memory admits it, or remove the rows."
    return _finding(f"more tokens than max_length, {max_length:,}", advice, long)


def _white_space(traces: Sequence[Trace], prompt: Prompt, asked: Sequence[str]) -> Finding:
    different = other_white_space([trace.prompt for trace in traces], prompt, asked)
    found = [(traces[number], text) for number, text in different.items()]
    return _finding(*PROMPT_WHITE_SPACE, found)


def _in_validation(traces: Sequence[Trace], known: set[str]) -> Finding:
    found = [trace for trace in traces if one_spaced(trace.prompt) in known]
    questions = f" (different ones: {count_questions(found):,})" if found else ""
    return _finding(
        f"a question of the validation set{questions}",
        "Validation would look better than it is. Remove the rows from train_data.",
        [(trace, repr(trace.prompt[-2 * AROUND :])) for trace in found],
    )


def _summary(lengths: Sequence[int]) -> LengthSummary:
    median = statistics.median(lengths)
    return LengthSummary(min(lengths), median, _percentile_95(lengths), max(lengths))


def _percentile_95(lengths: Sequence[int]) -> int:
    # In whole numbers: 0.95 * 20 is a little more than 19 in floats on some lengths.
    return sorted(lengths)[-(-95 * len(lengths) // 100) - 1]


def _histogram(lengths: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Bins of one round width from the shortest row to the 95th percentile, and one for the rest,
    for a single very long row would else put all others into the first bin."""
    shortest, high, longest = min(lengths), _percentile_95(lengths), max(lengths)
    least = (high - shortest + 1) / MAX_BINS
    # The smallest of 1, 2, 5, 10, 20, 50, ... that is wide enough.
    widths = (digit * 10**power for power in count() for digit in (1, 2, 5))
    width = next(width for width in widths if width >= least)
    edges = list(range(shortest // width * width, high + 1, width))
    ends = [edge + width - 1 for edge in edges]
    if longest > ends[-1]:
        edges.append(ends[-1] + 1)
        ends.append(max(longest, ends[-1] + width))
    return tuple(
        (low, end, sum(low <= length <= end for length in lengths))
        for low, end in zip(edges, ends, strict=True)
    )


def _end_of_path(where: str) -> str:
    """The end of a long path: there stand the file's name and the line."""
    return where if len(where) <= WHERE_WIDTH else "..." + where[3 - WHERE_WIDTH :]


def _wrapped(text: str) -> list[str]:
    lines = textwrap.wrap(text, WIDTH - 2, break_on_hyphens=False)
    return [f"  {line}" for line in lines]
