"""The report of an evaluation: complete, the same every time, and safe from what a model writes."""

import re
import shutil
import subprocess
import tomllib
from html.parser import HTMLParser

import pytest
from tiny_models import REPOSITORY

from trl_r1zero.evaluation import (
    GradedCompletion,
    results_table,
    summarize_evaluation,
    write_evaluation_report,
)
from trl_r1zero.evaluation.pages import Page, Section, Table, as_html

HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "</pre></details></article></section></body></html>",
    "```\n# A heading\n````\n</details>\n| a | b |\n```",
    "~~~\n    code\n\n</summary>",
    "\x1b[31mred\x1b[0m \x00 \u202egnol\u2028line\rover",
    "&lt;b&gt; &amp; \"quoted\" 'single' {title} %s",
    "\n\nblank lines first, and last\n\n",
]
ABOUT = {
    "num_examples": 1,
    "num_completions": 1,
    "seed": 0,
    "sampling": {"temperature": 1.0, "stop": ["</answer>"]},
    "engine": "transformers",
    "reward": "r1_zero_reward_fn",
    "settings": {
        "model": "some/<b>model</b>|x",
        "task": "math",
        "prompt": "r1_zero",
        "backend": "vllm",
        "versions": {"torch": "2.13"},
    },
    "started": "2026-01-01T00:00:00+0000",
    "seconds": 2.0,
}
VOID = {"meta"}


def graded(number: int, formatted: bool, right: bool, text: str, **extra) -> GradedCompletion:
    rewards = {
        "reward": float(right),
        "format_reward": float(formatted),
        "answer_reward": float(right),
    }
    extra = {"finish_reason": "stop", "rule": "some_rule", **extra}
    return GradedCompletion(
        prompt=f"prompt {number}: {text}",
        response=f"response {number}: {text}",
        ground_truth=f"truth {number}: {text}",
        rewards=rewards,
        length=number,
        truncated=False,
        extra=extra,
        example=number,
    )


class Outline(HTMLParser):
    """Tags must be balanced; keeps the texts of each kind of element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.texts: dict[str, list[str]] = {}
        self.attributes: set[str] = set()
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]][-1] += data


def outside_of_fences(page: str) -> str:
    """The lines of a Markdown page that are no fenced text."""
    fence, outside = None, []
    for line in page.split("\n"):
        if fence is None and re.fullmatch("`{3,}", line):
            fence = line
        elif fence is None:
            outside.append(line)
        elif re.fullmatch("`{3,}", line) and len(line) >= len(fence):
            fence = None
    assert fence is None
    return "\n".join(outside)


@pytest.fixture
def report(tmp_path):
    def write(rows, num_completions=1, about=ABOUT):
        summary = summarize_evaluation(rows, num_completions, seconds=2.0)
        write_evaluation_report(tmp_path, rows, summary, about)
        return (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()

    return write


def some_rows() -> list[GradedCompletion]:
    """Of each category more than ten, four and none."""
    return [
        *(graded(number, True, True, "fine") for number in range(15)),
        *(graded(number, True, False, "fine") for number in range(15, 19)),
    ]


def test_sections_and_numbers(report):
    markdown, page = report(some_rows())
    headings = [line for line in markdown.splitlines() if line.startswith("## ")]
    assert headings == [
        "## What was evaluated",
        "## Results",
        "## Categories",
        "## Right: format 1, answer 1",
        "## Wrong: format 1, answer 0",
        "## Unformatted or unparsed: format 0",
    ]
    assert Outline(page).texts["h2"] == [line.removeprefix("## ") for line in headings]
    # 15 of 19: p = 0.7895, sqrt(p (1 - p) / 18) = 0.0961
    for text in ("0.7895 ± 0.0961", "15 of 19 completions (78.9%).", "2026-01-01T00:00:00+0000"):
        assert text in markdown and text.replace(" ± ", "\u00a0±\u00a0") in page
    assert "0 of 19 completions (0.0%)." in markdown
    cells = [cell.strip() for cell in markdown.splitlines()[4:16] for cell in cell.split("|")]
    for name in ("model", "task", "prompt", "backend", "sampling", "versions", "started"):
        assert name in cells


def test_examples_of_each_category(report):
    rows = some_rows()
    markdown, page = report(rows)
    outline = Outline(page)
    assert outline.count["details"] == 2 == markdown.count("<details>")
    assert outline.texts["summary"] == ["10 examples", "4 examples"]
    chosen = [int(title.removeprefix("Example ")) for title in outline.texts["h3"]]
    assert len(chosen) == 14
    assert chosen == sorted(set(chosen))
    assert chosen[10:] == [15, 16, 17, 18]
    assert outline.texts["h3"] == re.findall("^### (.*)$", markdown, re.MULTILINE)
    assert (markdown, page) == report(rows)
    assert f"response {chosen[0]}: fine" in markdown
    facts = outline.texts["span"]
    for fact in ("reward 1", "format_reward 1", "rule some_rule", f"{chosen[0]} tokens"):
        assert fact in facts


def test_a_model_cannot_break_the_html(report):
    rows = [graded(number, False, False, text) for number, text in enumerate(HOSTILE)]
    for row in rows:
        row.extra["rule"] = row.response
        row.extra["metadata"] = {"subject": row.response}
    page = report(rows)[1]
    outline = Outline(page)
    ours = "html head meta title style body h1 h2 h3 h4 section article details summary div p span"
    assert outline.count.keys() == {*ours.split(), "b", "i", "pre", "table", "tr", "th", "td"}
    assert outline.attributes == {
        "charset",
        "class",
        "content",
        "http-equiv",
        "lang",
        "name",
        "style",
    }
    markup = re.sub(r">[^<]*<", "><", page)
    assert not re.search(r"(?i)(src|href)\s*=|url\(|@import|https?://", markup)
    assert "\x1b" not in page and "\x00" not in page and "\u202e" not in page
    texts = outline.texts["pre"]
    assert len(texts) == 3 * len(HOSTILE)
    for number, text in enumerate(HOSTILE):
        shown = "".join(
            c if c.isprintable() or c == "\n" else ascii(c)[1:-1]
            for c in f"response {number}: {text}"
        )
        assert texts[3 * number + 1].removeprefix("\n") == shown


def test_a_model_cannot_break_the_markdown(report):
    rows = [graded(number, False, False, text) for number, text in enumerate(HOSTILE)]
    for row in rows:
        row.extra["rule"] = row.response
        row.extra["metadata"] = {"subject": row.response}
    markdown = report(rows)[0]
    assert not {"\x1b", "\x00", "\u202e", "\u2028", "\r"} & set(markdown)
    lines = outside_of_fences(markdown).split("\n")
    titles = [line for line in lines if line.startswith("#")]
    assert titles == [
        "# Evaluation of some/\\<b>model\\</b>\\|x on math",
        "## What was evaluated",
        "## Results",
        "## Categories",
        "## By subject",
        "## Right: format 1, answer 1",
        "## Wrong: format 1, answer 0",
        "## Unformatted or unparsed: format 0",
        *(f"### Example {number}" for number in range(len(HOSTILE))),
    ]
    tags = [line for line in lines if re.search(r"(?<!\\)<", line)]
    assert tags == ["<details><summary>7 examples</summary>", "</details>"]
    # Every row of a table has as many cells as the others: 2 + 2 + 4 + 3 + 2 + 5 columns.
    tables = re.findall(r"(?:^\|.*\n)+", "\n".join(lines), re.MULTILINE)
    bars = [{len(re.findall(r"(?<!\\)\|", row)) for row in one.splitlines()} for one in tables]
    assert bars == [{3}, {3}, {5}, {4}, {3}, {6}]
    for text in HOSTILE[:4]:
        assert text in markdown


def test_several_completions(report):
    rows = [graded(0, True, k == 0, "fine", answer=str(k)) for k in range(2)]
    rows[1].completion = 1
    markdown, page = report(rows, num_completions=2)
    assert "## Several completions" in markdown
    # Of one example, without an error: one of two is right; a tie goes to the first answer.
    table = [line.split() for line in markdown.splitlines() if re.match(r"\| [12] ", line)]
    assert [row[1::2] for row in table] == [["1", "0.5000", "0.5000"], ["2", "1.0000", "1.0000"]]
    assert Outline(page).texts["h3"] == ["Example 0, completion 0", "Example 0, completion 1"]


def test_breakdowns(report):
    rows = [
        graded(number, True, number == 0, "fine", metadata={"level": 5 - number, "subject": "X"})
        for number in range(2)
    ]
    markdown, page = report(rows)
    assert "## By level" in markdown and "## By subject" in markdown
    cells = [line.split() for line in markdown.splitlines() if re.match(r"\| [45] ", line)]
    assert [(row[1], row[5]) for row in cells] == [("4", "0.0000"), ("5", "1.0000")]
    assert "level 5" in Outline(page).texts["span"]


def test_long_texts_lose_their_middle(report):
    row = graded(0, True, True, "fine")
    row.response = "start" + "x" * 20_000 + "end"
    for page in report([row]):
        assert "[... 10008 characters left out ...]" in page
        assert "start" in page and "xxxend" in page


def test_the_templates_are_installed():
    """Every file beside the templates is among the package's data."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["trl_r1zero"]
    package = REPOSITORY / "trl_r1zero"
    installed = {path for pattern in patterns for path in package.glob(pattern)}
    templates = set((package / "evaluation" / "templates").iterdir())
    assert len(templates) == 6
    assert templates <= installed


def test_results_table():
    summary = summarize_evaluation(some_rows(), 1, seconds=2.0)
    lines = results_table(summary).splitlines()
    assert lines[0].split() == ["|", "metric", "|", "value", "|"]
    assert "| accuracy | 0.7895 ± 0.0961 |" in [" ".join(line.split()) for line in lines]
    assert "| examples per second | 9.5 |" in [" ".join(line.split()) for line in lines]


_MEASURE = """<script>
const parts = (cell) => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  return range.getClientRects().length;
};
const names = [...document.querySelectorAll("td:first-child")];
document.title = names.filter((cell) => parts(cell) > 1).length + " broken";
</script>"""


@pytest.mark.parametrize("width", [400, 1200])
def test_names_are_not_broken_within_a_word(tmp_path, width):
    """In a real browser: beside a value that is as long as a path."""
    if not shutil.which("chromium"):
        pytest.skip("no chromium here")
    names = ["reward_deadline_seconds", "settings.model_files.weights", "seed"]
    table = Table(["what", "value"], [[name, "/a/long/path" * 20] for name in names], False)
    html = as_html(Page("A page", sections=[Section("Settings", tables=[table])])) + _MEASURE
    page = tmp_path / "page.html"
    page.write_text(re.sub(r"<meta http-equiv[^>]*>", "", html))  # it forbids scripts
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    command = ["chromium", *options, "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>0 broken</title>" in shown
