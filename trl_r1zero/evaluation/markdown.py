"""Markdown that is readable as it is, in a terminal or a log: tables, paragraphs, quoted text."""

import textwrap
from collections.abc import Sequence

WIDTH = 100


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table with padded columns, which is one in a terminal too."""
    widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in (header, ["-" * width for width in widths], *rows)
    ]


def wrapped(*paragraphs: str) -> list[list[str]]:
    return [textwrap.wrap(text, WIDTH, break_on_hyphens=False) for text in paragraphs]


def printable(text: str) -> str:
    """Text with its control characters escaped: what a model wrote must not steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def without_middle(text: str, characters: int) -> str:
    """Text of about this many characters: what is long loses its middle."""
    if len(text) <= characters:
        return text
    half = characters // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]} [... {left_out} characters left out ...] {text[-half:]}"


def quoted(text: str, characters: int) -> list[str]:
    """Text as an indented block, which Markdown shows as it is; see `without_middle`."""
    text = without_middle(printable(text), characters)
    lines = [
        piece
        for line in (text or "(empty)").split("\n")
        for piece in textwrap.wrap(line, WIDTH - 4, replace_whitespace=False) or [""]
    ]
    return [f"    {line}".rstrip() for line in lines]


def fenced(text: str) -> list[str]:
    """Text as a fenced block, which it cannot end: the fence is longer than its backticks."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [fence, text, fence]


def inline(text: str) -> str:
    """Text for one cell or one line: shown as it is, and it ends neither."""
    text = " ".join(printable(text).split())
    return "".join(f"\\{c}" if c in "\\`*|[]<&" else c for c in text)
