"""What a check finds, and the report of all findings."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
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
    """The result of one check."""

    section: str  # a key of `SECTIONS`
    check: str  # a name that does not change: for programs
    level: str  # ok, warning (it runs, but perhaps not as meant) or problem (it would fail)
    found: str
    needed: str = ""
    do: str = ""

    def to_lines(self) -> list[str]:
        """For a terminal, at most `WIDTH` columns wide."""
        mark = "PROBLEM" if self.level == "problem" else self.level
        text = ". ".join(filter(None, (self.found, self.needed and f"Needed: {self.needed}")))
        lines = _wrapped(text, f"  {mark:<9}")
        return lines + (_wrapped(f"-> {self.do}", _INDENT) if self.do else [])


def _finding(level: str, where: str, found: str, needed: str = "", do: str = "") -> Finding:
    section, check = where.split("/")
    return Finding(section, check, level, found, needed, do)


# Each of `section/check`, what was found, what is needed, and what to do.
ok, warning, problem = (partial(_finding, level) for level in ("ok", "warning", "problem"))


def problem_of(where: str, error: Exception) -> Finding:
    """A run would fail with an error, whose message is a fact, `; `, and advice."""
    found, _, advice = str(error).partition("; ")
    return problem(where, found, do=advice)


def would_fail(findings: Sequence[Finding]) -> bool:
    """Whether a run would."""
    return any(finding.level == "problem" for finding in findings)


def to_text(findings: Sequence[Finding], heading: str) -> str:
    """The report: section by section, and the verdict."""
    blocks = [heading]
    for section, title in SECTIONS.items():
        lines = [line for one in findings if one.section == section for line in one.to_lines()]
        blocks += ["\n".join([title, *lines])] if lines else []
    problems = [finding for finding in findings if finding.level == "problem"]
    warnings = sum(finding.level == "warning" for finding in findings)
    besides = f" ({_count(warnings, 'warning')})" if warnings else ""
    names = ", ".join(dict.fromkeys(f"{one.section}/{one.check}" for one in problems))
    verdict = f"Nothing was found that would fail{besides}."
    if problems:
        verdict = f"This run would fail: {_count(len(problems), 'problem')}{besides}: {names}."
    return "\n\n".join([*blocks, verdict])


def to_json(findings: Sequence[Finding], **facts: Any) -> dict[str, Any]:
    """The report for programs."""
    rows = [asdict(finding) for finding in findings]
    return {**facts, "would_fail": would_fail(findings), "findings": rows}


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _wrapped(text: str, first: str) -> list[str]:
    wrapper = textwrap.TextWrapper(
        WIDTH, first, _INDENT, break_on_hyphens=False, break_long_words=False
    )
    lines = []
    for part in text.split("\n"):
        lines += wrapper.wrap(part)
        wrapper.initial_indent = _INDENT
    return lines
