"""README and docs: their Python code runs, their links lead somewhere, their lines are short."""

import re

import pytest
from tiny_models import REPOSITORY

MAX_WIDTH = 100
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCKS = [
    (page.name, number, block)
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize(
    "block", [b for _, _, b in BLOCKS], ids=[f"{name}-{number}" for name, number, _ in BLOCKS]
)
def test_python_code_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README", "exec"), {})


def test_the_readme_has_code():
    assert [name for name, _, _ in BLOCKS].count("README.md") >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def anchors(page):
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_headings(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        there = page.parent / target if target else page
        assert anchor in anchors(there), f"{page.name} links to {target}#{anchor}"


def is_unbreakable(line):
    """A list marker or nothing, and then one link, image, formula, piece of code or word."""
    token = r"(!?\[[^\]]*\]\([^)]*\)|\$+[^$]+\$+|`[^`]+`|[^\s`\[$])+"
    return re.fullmatch(rf"\s*([-*] |\d+\. )?{token}", line) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_short(page):
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    long = [line for line in text.splitlines() if len(line) > MAX_WIDTH]
    assert not [line for line in long if line[0] != "|" and not is_unbreakable(line)]


def test_links_name_what_is_there():
    """`name` in a link to a module is defined in that module."""
    text = (REPOSITORY / "README.md").read_text()
    for names, target in re.findall(r"\[((?:`[^`]+`(?:, | and )?)+)\]\(([^)]+\.py)\)", text):
        source = (REPOSITORY / target).read_text()
        for name in re.findall(r"`([^`]+)`", names):
            attribute = name.split(".")[-1]
            defined = re.search(rf"(def|class) {attribute}\b|^{attribute}\b", source, re.MULTILINE)
            assert defined, f"{target} does not define {name}"
