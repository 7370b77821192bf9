"""What a vLLM server's log says: its first error, what to do about it, what it is at.

One failure leaves a cascade of tracebacks: the worker's, the engine's over the worker's, the
server's over the engine's. The first of them has the reason.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# (EngineCore pid=5724) ERROR 11-24 12:58:09 [core.py:1435] text, or a part of it.
_LINE = re.compile(
    r"(?:\((?P<process>[^()]* pid=\d+)\) ?)?"
    r"(?:(?P<level>[A-Z]+) \d\d-\d\d \d\d:\d\d:\d\d (?:\[[^\]]*\] ?)?)?"
    r"(?P<text>.*)"
)
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_TRACEBACK = "Traceback (most recent call last):"
_BETWEEN_CAUSES = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
# The last word of the command-line parser, of the supervisor (vllm_supervisor.py), and of the
# interpreter where there is nothing to run.
_PLAIN_ERRORS = re.compile(
    r"(?:main\.py|vllm\S*): error: |vllm_supervisor\.py: |.*: No module named "
)
_ENGINE_PROCESSES = ("EngineCore", "Worker", "VllmWorker")
# vLLM's words for it and the supervisor's; the requests that fail with it know no reason.
_ENGINE_IS_GONE = re.compile(r"died unexpectedly|the server lost its ")
_MAX_ERROR_LINES = 8

# What the first error matches -> what to do. The first match counts.
HINTS = {
    r"Address already in use": (
        "another program has the port: give another one, or none for a free one"
    ),
    r"greater than the derived max_model_len": (
        "lower max_model_len to what the model's config allows"
    ),
    r"max seq len|larger than the available KV cache|smaller than max_model_len": (
        "the key-value cache is too small for max_model_len: lower max_model_len, or give the "
        "cache more (cpu_kv_cache_gb on a CPU, gpu_memory_utilization on a GPU)"
    ),
    r"(?i)out of memory|OutOfMemory|can't allocate memory|Available memory on node|"
    r"Free memory on device|No available memory for the cache|\bSIGKILL\b|MemoryError|"
    r"the server lost its |died unexpectedly": (
        "memory ran out: lower cpu_kv_cache_gb on a CPU; on a GPU lower gpu_memory_utilization or "
        "max_model_len, or name a free GPU in devices"
    ),
    r"Repo id must be|not a valid model identifier|Repository Not Found|not a local folder|"
    r"We couldn't connect|offline mode|LocalEntryNotFound|config\.json": (
        "give the path of a model's folder, or the id of a model that the hub has"
    ),
    r"Unsupported CPU attention configuration": (
        "vLLM's kernels for CPUs want attention heads of 32 dimensions or more"
    ),
    r"[Ww]eight transfer (?:backend|engine)": (
        "vLLM does not know this package's plugin: install the package again in vLLM's environment "
        '(pip install -c constraints.txt -e ".[vllm]")'
    ),
    r"No module named '?vllm": "vLLM cannot be imported in this environment; install it again",
    r": error: ": "extra_args go to vLLM as they are; `vllm serve --help=all` lists its flags",
}


@dataclass(frozen=True)
class _Line:
    process: str  # such as "EngineCore pid=5724"; empty for what a process prints without its name
    level: str
    text: str

    @property
    def of_engine(self) -> bool:
        return self.process.startswith(_ENGINE_PROCESSES)


def first_error(log: str) -> str | None:
    """The first error in a server's log, without its traceback; None if there is none.

    An engine's or worker's error goes before those of the process that answers requests, which logs
    refused requests too. Of an exception with causes, the first cause and the last exception are
    given.
    """
    lines = [_parse(line) for line in log.splitlines()]
    errors = list(_errors(lines))
    for line, error in errors:
        if line.of_engine:
            return error
    for _, error in errors:
        if _ENGINE_IS_GONE.search(error):
            return error
    return errors[0][1] if errors else None


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
    match = _LINE.fullmatch(_COLOR.sub("", raw).rstrip())
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
        elif _PLAIN_ERRORS.match(line.text):
            yield line, line.text
        elif line.level in ("ERROR", "CRITICAL") and line.text:
            # "EngineCore failed to start." and its traceback are one error.
            following = [
                one for one in lines[index + 1 : index + 10] if one.process == line.process
            ]
            if not (following and following[0].text.startswith(_TRACEBACK)):
                yield line, line.text


def _exception(lines: list[_Line], start: int) -> tuple[str, int]:
    """The exception of the traceback that begins at `start`, and the line where it is over."""
    process = lines[start].process
    exceptions: list[list[str]] = []
    in_stack, end = True, start + 1
    for index in range(start + 1, len(lines)):
        line = lines[index]
        if line.process != process:  # processes write into one another's tracebacks
            continue
        text = line.text
        if in_stack:
            if text and not text[0].isspace():
                exceptions.append([text])
                in_stack = False
        elif text in _BETWEEN_CAUSES or text.startswith(_TRACEBACK):
            if text.startswith(_TRACEBACK):
                if lines[end - 1].text not in ("", *_BETWEEN_CAUSES):
                    break  # another one
                in_stack = True
        elif text[:1].isspace() and len(exceptions[-1]) < _MAX_ERROR_LINES:
            exceptions[-1].append(text)
        elif text:
            break
        end = index + 1
    return _causes(["\n".join(_shortened(lines)) for lines in exceptions]), end


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
