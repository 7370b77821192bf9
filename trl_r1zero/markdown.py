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


def quoted(text: str, characters: int) -> list[str]:
    """Text as an indented block, which Markdown shows as it is.

    Long text loses its middle (questions and answers tend to stand at the end), and control
    characters are escaped: a model's text must not steer a terminal.
    """
    text = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    half = characters // 2
    if len(text) > characters:
        left_out = len(text) - 2 * half
        text = f"{text[:half]} [... {left_out} characters left out ...] {text[-half:]}"
    lines = [
        piece
        for line in (text or "(empty)").split("\n")
        for piece in textwrap.wrap(line, WIDTH - 4, replace_whitespace=False) or [""]
    ]
    return [f"    {line}".rstrip() for line in lines]
