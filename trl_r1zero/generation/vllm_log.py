"""What a vLLM server's log says: its first error, what to do about it, and its newest line.

One failure leaves a cascade of tracebacks: the worker's, the engine's over the worker's, the
server's over the engine's. The first of them has the reason.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from .vllm_compat import ENGINE_IS_GONE, ENGINE_PROCESSES, HINTS, LOG_LINE, PLAIN_ERRORS

_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_TRACEBACK = "Traceback (most recent call last):"
_BETWEEN_CAUSES = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
_MAX_ERROR_LINES = 8


class _Line(NamedTuple):
    process: str  # such as "EngineCore pid=5724"; empty for what a process prints without its name
    level: str
    text: str


def first_error(log: str) -> str | None:
    """The first error in a server's log, without its traceback; None if there is none.

    An engine's or worker's error goes before those of the process that answers requests, which logs
    refused requests too. Of an exception with causes, the first cause and the last exception are
    given.
    """
    errors = list(_errors([_parse(line) for line in log.splitlines()]))
    of_engine = [text for line, text in errors if line.process.startswith(ENGINE_PROCESSES)]
    engine_is_gone = [text for _, text in errors if ENGINE_IS_GONE.search(text)]
    return next(iter([*of_engine, *engine_is_gone, *(text for _, text in errors)]), None)


def hint(error: str) -> str | None:
    """What to do about an error; None if it is none of the usual ones."""
    return next((text for pattern, text in HINTS.items() if re.search(pattern, error)), None)


def gist(log: str, width: int = 80) -> str:
    """The newest line of a log that says something, without process, time and place."""
    for raw in reversed(log.splitlines()):
        line = _parse(raw.rpartition("\r")[2])
        text = " ".join(line.text.split())
        if line.level in ("WARNING", "DEBUG") or not re.search(r"[A-Za-z]{3}", text):
            continue  # banners, rulers; warnings that are no stage of a start
        return text if len(text) <= width else text[: width - 3] + "..."
    return ""


def _parse(raw: str) -> _Line:
    match = LOG_LINE.fullmatch(_COLOR.sub("", raw).rstrip())
    assert match is not None  # every part may be missing
    return _Line(match["process"] or "", match["level"] or "", match["text"])


def _errors(lines: list[_Line]) -> Iterator[tuple[_Line, str]]:
    """Each error with its first line, in the order of the log."""
    done = 0
    for index, line in enumerate(lines):
        if index < done or line.level in ("WARNING", "INFO", "DEBUG"):
            continue
        if line.text.startswith(_TRACEBACK):
            text, done = _exception(lines, index)
            yield line, text
        elif PLAIN_ERRORS.match(line.text):
            yield line, line.text
        elif line.level in ("ERROR", "CRITICAL") and line.text:
            # "EngineCore failed to start." and its traceback are one error.
            following = (
                one for one in lines[index + 1 : index + 10] if one.process == line.process
            )
            if not next(following, line).text.startswith(_TRACEBACK):
                yield line, line.text


def _exception(lines: list[_Line], start: int) -> tuple[str, int]:
    """The exception of the traceback that begins at `start`, and the line where it is over."""
    exceptions: list[list[str]] = []
    in_stack, end = True, start + 1
    for index in range(start + 1, len(lines)):
        process, _, text = lines[index]
        if process != lines[start].process:  # processes write into one another's tracebacks
            continue
        if in_stack:
            if text and not text[0].isspace():
                exceptions.append([text])
                in_stack = False
        elif text.startswith(_TRACEBACK):
            if lines[end - 1].text not in ("", *_BETWEEN_CAUSES):
                break  # another one
            in_stack = True
        elif text[:1].isspace() and len(exceptions[-1]) < _MAX_ERROR_LINES:
            exceptions[-1].append(text)
        elif text and text not in _BETWEEN_CAUSES:
            break
        end = index + 1
    return _causes(["\n".join(_shortened(exception)) for exception in exceptions]), end


def _shortened(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if "For further information visit" not in line:
            # pydantic repeats the whole input
            yield re.sub(r" \[type=\w+, input_value=.*", "", line)


def _causes(exceptions: list[str]) -> str:
    if not exceptions:
        return "an exception, but the log ends in its traceback"
    first, last = exceptions[0], exceptions[-1]
    reason = first.partition(": ")[2].strip()
    return first if not reason or reason in last or first == last else f"{first}\n{last}"
