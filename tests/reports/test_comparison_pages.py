"""The report of an experiment as files: Markdown, HTML that needs nothing else, and figures."""

import re
from html.parser import HTMLParser

import pytest
from compared_groups import BASE, VARIANT, compare_groups, two_groups
from report_runs import answered_run, cells_of, seed_run

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "wbr"}


def test_answers_over_time_are_of_telling_questions_of_the_median_run(tmp_path):
    _, report, _ = compare_groups(two_groups(tmp_path), tmp_path / "out")
    # The lower of two is the median. It became right on question 1, and stayed wrong on 4.
    titles = [line for line in report.splitlines() if line.startswith("### ")]
    assert titles == [
        "### base: question 1", "### base: question 4",
        "### faster: question 1", "### faster: question 6",
    ]  # fmt: skip
    first = report[report.index("### base: question 1") : report.index("### base: question 4")]
    assert "run base-0 · seed 0" in first and "What is 1 + 1?" in first
    assert "After GRPO step 0 (wrong, 5 tokens):\n\n```\nanswer of step 0" in first
    assert "After GRPO step 2 (right, 5 tokens):\n\n```\nanswer of step 2" in first


def test_at_most_six_points_in_time_are_shown(tmp_path):
    run = answered_run(tmp_path / "a", 0, dict.fromkeys(range(0, 21, 2), "10"))
    _, report, _ = compare_groups({"base": [run]}, tmp_path / "out")
    steps = re.findall(r"After GRPO step (\d+)", report.split("### ")[1])
    assert steps == ["0", "4", "8", "12", "16", "20"]


class _Checker(HTMLParser):
    """Collects what is open, and every tag with its attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_holds_everything_and_loads_nothing(tmp_path):
    evil = '</pre><script>alert("{}")</script><img src=x onerror=alert(1)>'
    groups = two_groups(tmp_path, prompt=evil)
    groups["<b>bold</b> & co"] = groups.pop("faster")
    setup = ["Run by `make`, <i>twice</i>."]
    compare_groups(groups, tmp_path / "out", question="Is it <fast>?", setup=setup)
    page = (tmp_path / "out" / "report.html").read_text()
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    names = {tag for tag, _ in checker.tags}
    assert not names & {"script", "link", "iframe", "i"}
    pictures = [attributes for tag, attributes in checker.tags if tag == "img"]
    assert len(pictures) == 2
    assert all(p["src"].startswith("data:image/png;base64,iVBOR") and p["alt"] for p in pictures)
    assert not any("onerror" in attributes for _, attributes in checker.tags)
    assert "img-src data:" in page and "http://" not in page and "https://" not in page
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; co" in page and "Is it &lt;fast&gt;?" in page
    assert "&lt;script&gt;alert" in page

    report = (tmp_path / "out" / "report.md").read_text()
    assert "](<validation.png>)" in report and "](<training.png>)" in report
    assert "Run by \\`make\\`, \\<i>twice\\</i>." in report


def test_nothing_of_this_machine_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    groups = {
        name: [answered_run(tmp_path / name, 0, BASE[0], model_name_or_path=str(tmp_path / name))]
        for name in ("one", "two")
    }
    _, report, _ = compare_groups(groups, tmp_path / "out")
    assert "| one   | one                |" in report  # of the table of settings
    for name in ("report.md", "report.html", "results.json"):
        assert str(tmp_path) not in (tmp_path / "out" / name).read_text()


def test_the_same_runs_give_the_same_files(tmp_path):
    groups = two_groups(tmp_path)
    for name in ("one", "two"):
        compare_groups(groups, tmp_path / name)
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert names == ["report.html", "report.md", "results.json", "training.png", "validation.png"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_without_training_lines_there_is_no_figure_of_training(tmp_path):
    out = tmp_path / "out"
    compare_groups(two_groups(tmp_path), out)
    compare_groups({"base": [seed_run(tmp_path / "a", 0, [0.2, 0.5])]}, out)
    assert not (out / "training.png").exists()
    assert "training.png" not in (out / "report.md").read_text()


@pytest.mark.parametrize("key", ["ei_step", "train_step", "dpo_step"])
def test_other_kinds_of_runs(tmp_path, key):
    groups = {
        name: [
            answered_run(tmp_path / f"{name}{seed}", seed, right, key=key)
            for seed, right in enumerate(runs)
        ]
        for name, runs in (("base", BASE), ("faster", VARIANT))
    }
    _, report, _ = compare_groups(groups, tmp_path / "out")
    # The tokens; where they are known, also the outcome at equal ones.
    known = ["400", "0.562 ± 0.062"]
    tokens = {"ei_step": ["-"], "train_step": known, "dpo_step": known}[key]
    assert cells_of(report, "base", "## Validation")[8:] == tokens
    assert ("## Answers over time" in report) == (key != "dpo_step")
