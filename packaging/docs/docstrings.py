"""Docstrings as Markdown: their formulas are written as reStructuredText has them, for editors."""

import re
from typing import Any

import griffe

INLINE = re.compile(r":math:`([^`]+)`")
BLOCK = re.compile(r"^( *)\.\. math::\s*((?:.+\n?)+?)(?=\n|\Z)", re.MULTILINE)


def as_markdown(docstring: str) -> str:
    """A docstring with formulas between dollar signs."""
    inline = INLINE.sub(lambda match: f"${' '.join(match[1].split())}$", docstring)
    return BLOCK.sub(_displayed, inline)


def _displayed(match: re.Match[str]) -> str:
    formula = " ".join(match[2].split())
    if r"\\" in formula:  # several lines, which Sphinx aligns by itself
        formula = rf"\begin{{split}} {formula} \end{{split}}"
    return f"\n{match[1]}$${formula}$$\n"


class Formulas(griffe.Extension):
    """Puts `as_markdown` of each docstring in its place."""

    def on_object(self, *, obj: griffe.Object, **about: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
