"""A page of tables and examples, as Markdown and as HTML that needs nothing but itself.

A page is plain text throughout: whatever it holds, a prompt or what a model wrote, is shown as it
is and cannot end its place or steer the browser or the terminal.
"""

import base64
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from markupsafe import Markup, escape

from .markdown import fenced, inline, printable, table, without_middle, wrapped

T = TypeVar("T")

CHARACTERS_SHOWN = 10_000  # of one text of an example
TEMPLATES = Path(__file__).parent / "templates"  # and the base of all pages, with its colours


@dataclass
class Table:
    """Rows of cells; `numeric`: all columns but the first are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: bool = True


@dataclass
class Example:
    """One example: its title, facts in a few words, and its texts by name."""

    title: str
    facts: Sequence[str]
    texts: dict[str, str]


@dataclass
class Picture:
    """A PNG file beside the page, which HTML holds in itself; `caption` says what it shows."""

    path: Path
    caption: str


@dataclass
class Section:
    """A heading with sentences, tables, pictures, and examples that are folded away."""

    heading: str
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    examples: Sequence[Example] = ()


@dataclass
class Page:
    """A title and sections; `cards` and `bar` are in HTML only."""

    title: str
    cards: Sequence[tuple[str, str]] = ()  # (label, value): what is seen first
    bar: Sequence[tuple[str, float]] = ()  # (label, share): parts of a whole
    sections: list[Section] = field(default_factory=list)


def pick(rows: Sequence[T], count: int) -> list[T]:
    """Up to `count` of the rows, picked at random, in their order; always the same ones."""
    chosen = random.Random(0).sample(range(len(rows)), min(count, len(rows)))
    return [rows[number] for number in sorted(chosen)]


def as_markdown(page: Page) -> str:
    """The page as Markdown that is readable as it is."""
    return _TEMPLATES.get_template("page.md").render(page=page)


def as_html(page: Page) -> str:
    """The page as one HTML file: no scripts, nothing loaded from anywhere."""
    return _TEMPLATES.get_template("page.html").render(page=page)


def _markdown_table(one: Table) -> str:
    header, *rows = [[inline(cell) for cell in row] for row in (one.header, *one.rows)]
    return "\n".join(table(header, rows))


def _nonbreaking(cell: str) -> Markup:
    """A number and its error stay on one line."""
    return escape(printable(cell)).replace(" ± ", "\u00a0±\u00a0")


def _printable(value: Any) -> Any:
    """All text that a template writes is made printable, then escaped in HTML."""
    return value if isinstance(value, Markup) else printable(str(value))


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=jinja2.select_autoescape(["html"]),
    finalize=_printable,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {
    "base64": lambda path: Markup(base64.b64encode(path.read_bytes()).decode("ascii")),
    "fenced": lambda text: "\n".join(fenced(text)),
    "how_many": lambda examples: f"{len(examples)} example{'s' if len(examples) > 1 else ''}",
    "inline": inline,
    "markdown_table": _markdown_table,
    "nonbreaking": _nonbreaking,
    "paragraph": lambda text: "\n".join(wrapped(inline(text))[0]),
    "shortened": lambda text: without_middle(printable(text), CHARACTERS_SHOWN),
}
