"""What a check says, and how a list of it reads."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

WIDTH = 100
# In the order of the report; a check names one of them.
SECTIONS = {
    "versions": "Versions",
    "machine": "Machine and launch",
    "server": "Server",
    "model": "Model",
    "data": "Data",
    "reward": "Reward",
    "memory": "Memory",
    "disk": "Disk",
    "settings": "Settings",
    "time": "Time",
}
_INDENT = " " * 11


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        section: A key of `SECTIONS`.
        check: What was looked at, a name that does not change: for programs.
        level: `ok`, `warning` (it runs, but perhaps not as meant) or `problem` (it would fail).
        found: What is so.
        needed: What would have to be so; empty where nothing is wrong.
        do: What to do; empty where there is nothing to do.
    """

    section: str
    check: str
    level: str
    found: str
    needed: str = ""
    do: str = ""

    def to_lines(self) -> list[str]:
        """For a terminal, at most `WIDTH` columns wide."""
        text = ". ".join(filter(None, (self.found, self.needed and f"Needed: {self.needed}")))
        mark = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}[self.level]
        lines = _wrapped(text, f"  {mark:<9}")
        return lines + (_wrapped(f"-> {self.do}", _INDENT) if self.do else [])


def ok(section: str, check: str, found: str) -> Finding:
    """Something that is as it should be."""
    return Finding(section, check, "ok", found)


def warning(section: str, check: str, found: str, needed: str = "", do: str = "") -> Finding:
    """Something that runs, but perhaps not as it was meant."""
    return Finding(section, check, "warning", found, needed, do)


def problem(section: str, check: str, found: str, needed: str = "", do: str = "") -> Finding:
    """Something that a run would fail with."""
    return Finding(section, check, "problem", found, needed, do)


def would_fail(findings: Sequence[Finding]) -> bool:
    """Whether a run would."""
    return any(finding.level == "problem" for finding in findings)


def to_text(findings: Sequence[Finding], heading: str) -> str:
    """The report: a section after the other, and what it comes to."""
    blocks = [heading]
    for section, title in SECTIONS.items():
        own = [finding for finding in findings if finding.section == section]
        if own:
            blocks.append("\n".join([title, *(line for one in own for line in one.to_lines())]))
    return "\n\n".join([*blocks, verdict(findings)])


def verdict(findings: Sequence[Finding]) -> str:
    """The last line."""
    problems = [finding for finding in findings if finding.level == "problem"]
    warnings = sum(finding.level == "warning" for finding in findings)
    beside = f" ({_count(warnings, 'warning')})" if warnings else ""
    if not problems:
        return f"Nothing was found that would fail{beside}."
    names = ", ".join(dict.fromkeys(f"{one.section}/{one.check}" for one in problems))
    return f"This run would fail: {_count(len(problems), 'problem')}{beside}: {names}."


def to_json(findings: Sequence[Finding], **facts: Any) -> dict[str, Any]:
    """The report for programs."""
    return {
        **facts,
        "would_fail": would_fail(findings),
        "findings": [asdict(finding) for finding in findings],
    }


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _wrapped(text: str, first: str) -> list[str]:
    return [
        line
        for number, part in enumerate(text.split("\n"))
        for line in textwrap.wrap(
            part,
            WIDTH,
            initial_indent=_INDENT if number else first,
            subsequent_indent=_INDENT,
            break_on_hyphens=False,
            break_long_words=False,
        )
    ]
