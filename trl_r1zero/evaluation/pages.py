"""A page of tables and examples, as Markdown and as HTML that needs nothing but itself.

A page is plain text throughout: whatever it holds, a prompt or what a model wrote, is shown as it
is and cannot end its place or steer the browser or the terminal.
"""

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .markdown import fenced, inline, printable, table, without_middle, wrapped

CHARACTERS_SHOWN = 10_000  # of one text of an example


@dataclass
class Table:
    """Rows of cells; `numeric`: all columns but the first are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: bool = True


@dataclass
class Shown:
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
    examples: Sequence[Shown] = ()


@dataclass
class Page:
    """A page.

    Attributes:
        title: Heading of the whole.
        cards: (label, value): what is seen first in HTML. In Markdown the tables must do.
        bar: (label, share): parts of a whole, drawn in HTML.
        sections: In order.
    """

    title: str
    cards: Sequence[tuple[str, str]] = ()
    bar: Sequence[tuple[str, float]] = ()
    sections: list[Section] = field(default_factory=list)


def as_markdown(page: Page) -> str:
    """The page as Markdown that is readable as it is."""
    lines = [f"# {inline(page.title)}"]
    for section in page.sections:
        lines += ["", f"## {inline(section.heading)}"]
        for sentence in section.sentences:
            lines += ["", *wrapped(inline(sentence))[0]]
        for one in section.tables:
            cells = [[inline(cell) for cell in row] for row in one.rows]
            lines += ["", *table([inline(cell) for cell in one.header], cells)]
        for picture in section.pictures:
            # Angle brackets, for a name may have blanks.
            lines += ["", f"![{inline(picture.caption)}](<{picture.path.name}>)"]
        if section.examples:
            summary = _how_many(section.examples)
            lines += ["", f"<details><summary>{summary}</summary>"]
            for shown in section.examples:
                lines += ["", f"### {inline(shown.title)}", "", inline(" · ".join(shown.facts))]
                for name, text in shown.texts.items():
                    lines += ["", f"{inline(name)}:", "", *fenced(_shortened(text))]
            lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


def as_html(page: Page) -> str:
    """The page as one HTML file: no scripts, nothing loaded from anywhere."""
    body = [_tag("h1", page.title)]
    if page.cards:
        cards = "".join(
            f"<div>{_tag('span', label)}{_tag('b', value)}</div>" for label, value in page.cards
        )
        body.append(f'<div class="cards">{cards}</div>')
    if page.bar:
        body += list(_html_bar(page.bar))
    for section in page.sections:
        body += ["<section>", _tag("h2", section.heading)]
        body += [_tag("p", sentence) for sentence in section.sentences]
        if section.tables:
            tables = "\n".join(_html_table(one) for one in section.tables)
            body.append(f'<div class="tables">\n{tables}\n</div>')
        body += [_html_picture(picture) for picture in section.pictures]
        if section.examples:
            body += ["<details>", _tag("summary", _how_many(section.examples))]
            for shown in section.examples:
                body += ["<article>", _tag("h3", shown.title), '<p class="facts">']
                body += [_tag("span", fact) for fact in shown.facts]
                body.append("</p>")
                for name, text in shown.texts.items():
                    body += [_tag("h4", name), _tag("pre", _shortened(text))]
                body.append("</article>")
            body.append("</details>")
        body.append("</section>")
    return _DOCUMENT.format(title=_escaped(page.title), style=_STYLE, body="\n".join(body))


def _how_many(examples: Sequence[Shown]) -> str:
    return f"{len(examples)} example{'s' if len(examples) > 1 else ''}"


def _shortened(text: str) -> str:
    return without_middle(printable(text), CHARACTERS_SHOWN)


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def _tag(name: str, text: str) -> str:
    # A line break straight after <pre> would be dropped.
    first = "\n" if name == "pre" else ""
    return f"<{name}>{first}{_escaped(text)}</{name}>"


def _html_table(one: Table) -> str:
    rows = [("th", one.header), *(("td", row) for row in one.rows)]
    lines = ["<tr>" + "".join(_tag(name, cell) for cell in cells) + "</tr>" for name, cells in rows]
    # A number and its error stay on one line.
    lines = [line.replace(" ± ", "\u00a0±\u00a0") for line in lines]
    kind = ' class="numeric"' if one.numeric else ""
    return "\n".join([f"<table{kind}>", *lines, "</table>"])


def _html_picture(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    caption = _escaped(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _html_bar(bar: Sequence[tuple[str, float]]) -> Iterable[str]:
    parts = [
        f'<i class="part{number}" style="width:{100 * share:.2f}%"></i>'
        for number, (_, share) in enumerate(bar)
    ]
    yield f'<div class="bar">{"".join(parts)}</div>'
    legend = [
        f'<span><i class="part{number}"></i>{_escaped(label)} {share:.1%}</span>'
        for number, (label, share) in enumerate(bar)
    ]
    yield f'<p class="legend">{"".join(legend)}</p>'


_DOCUMENT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
{body}
</body>
</html>
"""

_STYLE = """:root { color-scheme: light dark;
  --text: #1c2330; --quiet: #5d6777; --line: #d9dee6; --page: #fff; --panel: #f5f7fa;
  --part0: #2f9e6b; --part1: #e0a030; --part2: #9aa5b5; }
@media (prefers-color-scheme: dark) { :root {
  --text: #e4e8ef; --quiet: #98a3b5; --line: #343d4b; --page: #161b23; --panel: #1e252f;
  --part0: #35ad78; --part1: #d9a441; --part2: #5d6a7e; } }
body { max-width: 62rem; margin: 2.5rem auto; padding: 0 1.25rem; color: var(--text);
  background: var(--page); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1.25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0; }
h4 { font-size: .8rem; font-weight: 600; color: var(--quiet); margin: .9rem 0 .25rem; }
.cards { display: flex; flex-wrap: wrap; gap: .75rem; }
.cards div { flex: 1 1 11rem; padding: .75rem 1rem; border-radius: .5rem;
  background: var(--panel); }
.cards span { display: block; font-size: .85rem; color: var(--quiet); }
.cards b { font-size: 1.35rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { display: flex; height: .9rem; margin-top: 1.25rem; border-radius: .45rem;
  overflow: hidden; background: var(--panel); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; margin: .5rem 0 0;
  font-size: .875rem; color: var(--quiet); }
.legend i { display: inline-block; width: .7rem; height: .7rem; margin-right: .45rem;
  border-radius: .2rem; }
.part0 { background: var(--part0); } .part1 { background: var(--part1); }
.part2 { background: var(--part2); }
.tables { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 1rem 2.5rem;
  overflow-x: auto; }
table { border-collapse: collapse; font-size: .925rem; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { font-weight: 600; color: var(--quiet); vertical-align: bottom; overflow-wrap: normal; }
td + td { overflow-wrap: break-word; }
.numeric th + th, .numeric td + td { text-align: right; padding: .3rem 0 .3rem .9rem; }
.numeric td + td { font-variant-numeric: tabular-nums; white-space: nowrap; }
.numeric td:first-child { min-width: min(15rem, 40vw); }
p { margin: .4rem 0; }
figure { margin: 1.25rem 0; padding: .75rem; border-radius: .5rem; background: #fff; }
figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: .5rem; font-size: .875rem; color: #5d6777; }
summary { cursor: pointer; padding: .5rem 0; color: var(--quiet); }
article { margin: 0 0 1rem; padding: 1rem 1.1rem; border: 1px solid var(--line);
  border-radius: .5rem; }
.facts { display: flex; flex-wrap: wrap; gap: .35rem; margin: .5rem 0 0; }
.facts span { padding: .05rem .55rem; border-radius: 1rem; background: var(--panel);
  font-size: .825rem; color: var(--quiet); }
pre { margin: 0; padding: .65rem .8rem; border-radius: .4rem; background: var(--panel);
  font: .85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }"""
