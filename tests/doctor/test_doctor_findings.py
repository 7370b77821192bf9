"""How findings read, and what they come to."""

from trl_r1zero.doctor import ok, problem, warning
from trl_r1zero.doctor.findings import SECTIONS, problem_of, to_json, to_text, would_fail

FINE = ok("model/model", "a model")
ODD = warning("settings/learning_rate", "small", do="raise it")
WRONG = problem("disk/checkpoints", "10 GB are free", "50 GB", "give another output_dir")


def test_only_a_problem_fails():
    assert not would_fail([FINE, ODD])
    assert would_fail([FINE, ODD, WRONG])


def test_the_text_has_sections_in_order_and_ends_in_the_verdict():
    text = to_text([ODD, WRONG, FINE], "recipe.yaml (grpo)")
    assert text.splitlines()[0] == "recipe.yaml (grpo)"
    assert text.index("Model\n") < text.index("Disk\n") < text.index("Settings\n")
    assert "  PROBLEM  10 GB are free. Needed: 50 GB\n           -> give another output_dir" in text
    assert text.splitlines()[-1] == (
        "This run would fail: 1 problem (1 warning): disk/checkpoints."
    )
    assert to_text([FINE], "").splitlines()[-1] == "Nothing was found that would fail."


def test_no_line_is_wider_than_a_terminal():
    long = problem("data/rows", "word " * 80, "more " * 40, "do " * 80)
    assert max(map(len, to_text([long], "").splitlines())) <= 100


def test_the_keys_of_json():
    report = to_json([FINE, WRONG], recipe="r.yaml")
    assert report["recipe"] == "r.yaml"
    assert report["would_fail"] is True
    assert report["findings"][1] == {
        "section": "disk",
        "check": "checkpoints",
        "level": "problem",
        "found": "10 GB are free",
        "needed": "50 GB",
        "do": "give another output_dir",
    }
    assert {one["section"] for one in report["findings"]} <= set(SECTIONS)


def test_an_errors_advice_stands_behind_its_semicolon():
    finding = problem_of("server/placement", ValueError("no device '1'; name another"))
    assert (finding.level, finding.found, finding.do) == (
        "problem",
        "no device '1'",
        "name another",
    )
