"""What the site has besides the pages of docs/: the README as its first page, an API reference with
a page for each layer, links that lead from both into the reference, and formulas as MathML.

`mkdocs.yml` names this file; mkdocs calls its functions by their names.
"""

import html
import re
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "trl_r1zero"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
TEXT = re.compile("<mtext>.*?</mtext>")
CODE = re.compile(r"(^ *```.*?^ *```[^\n]*$)", re.DOTALL | re.MULTILINE)


def layers() -> list[str]:
    """The packages within the package; and the package, for the modules beside them."""
    packages = (path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py"))
    return [PACKAGE, *sorted(packages)]


def generated_pages() -> dict[str, str]:
    """Path in the site -> Markdown, of the pages that are no files of docs/."""
    pages = {"index.md": (ROOT / "README.md").read_text(encoding="utf-8")}
    for layer in layers():
        entries = [f"::: {module}\n" for module in modules_of(layer)]
        title = PACKAGE if layer == PACKAGE else f"{PACKAGE}.{layer}"
        pages[f"api/{layer}.md"] = "\n".join([f"# {title}\n", *entries])
    return pages


def modules_of(layer: str) -> list[str]:
    """The public modules of a layer; what its packages export stands there too."""
    folder = ROOT / PACKAGE
    found = folder.glob("*.py") if layer == PACKAGE else (folder / layer).rglob("*.py")
    names = (path.relative_to(ROOT).with_suffix("").parts for path in found)
    return sorted(".".join(name) for name in names if not name[-1].startswith("_"))


def navigation(listed: list[Any]) -> list[Any]:
    """The navigation of mkdocs.yml, with the pages of docs/ that it does not name, and with the
    reference."""
    named = set(re.findall(r"[\w/.-]+\.md", str(listed)))
    others = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name not in named)
    reference = [{layer: f"api/{layer}.md"} for layer in layers()]
    return [*listed, *([{"More": others}] if others else []), {"Reference": reference}]


def linked_pictures() -> list[str]:
    """Pictures outside of docs/ that pages show, by their path in the repository."""
    found = set()
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for match in LINK.finditer(page.read_text(encoding="utf-8")):
            target = _in_repository(match[3], page.name)
            if match[1] and not target.startswith("docs/"):
                found.add(target)
    return sorted(found)


def site_links(markdown: str, page: str) -> str:
    """The Markdown of a page with links as the site has them.

    A link to a module leads to its place in the reference. One to another file outside of docs/
    becomes its text, for the site has no such file.

    Args:
        markdown: Of the page.
        page: Its path in the site, such as `grpo.md`.
    """
    parts = CODE.split(markdown)
    parts[::2] = [LINK.sub(lambda match: _site_link(match, page), part) for part in parts[::2]]
    return "".join(parts)


def _in_repository(target: str, page: str) -> str:
    base = "" if page in ("index.md", "README.md") else "docs"
    return normpath(PurePosixPath(base, target).as_posix())


def _site_link(match: re.Match[str], page: str) -> str:
    picture, text, target, anchor = match[1], match[2], match[3], match[4] or ""
    if not target or "://" in target or page.startswith("api/"):
        return match[0]
    path = _in_repository(target, page)
    if path.startswith("docs/"):
        return f"{picture}[{text}]({path.removeprefix('docs/')}{anchor})"
    if picture:
        return f"![{text}](pictures/{path})"
    module = PurePosixPath(path)
    if module.parts[0] == PACKAGE and len(module.parts) > 1 and module.suffix in ("", ".py"):
        dotted = "#" + ".".join(module.with_suffix("").parts) if module.suffix else ""
        layer = PACKAGE if module.suffix and len(module.parts) == 2 else module.parts[1]
        return f"[{text}](api/{layer}.md{dotted})"
    return text


def mathml(page: str) -> str:
    """A page's HTML with its formulas, which arithmatex marks, as MathML, which browsers draw."""
    from latex2mathml.converter import convert

    def draw(match: re.Match[str]) -> str:
        display = "block" if match["tag"] == "div" else "inline"
        drawn = convert(html.unescape(match["tex"].strip()), display=display)
        return TEXT.sub(lambda text: text[0].replace(r"\_", "_"), drawn)

    return FORMULA.sub(draw, page)


# What mkdocs calls.


def on_config(config: Any) -> Any:
    """Complete the navigation."""
    config.nav = navigation(config.nav)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for uri, text in generated_pages().items():
        files.append(File.generated(config, uri, content=text))
    for path in linked_pictures():
        picture = (ROOT / path).read_bytes()
        files.append(File.generated(config, f"pictures/{path}", content=picture))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links lead to pages of the site."""
    return site_links(markdown, page.file.src_uri)


def on_page_content(content: str, **about: Any) -> str:
    """Draw formulas."""
    return mathml(content)
