"""Tables of generations: rows, summary, and the two files."""

import json

import pytest

from trl_r1zero import log_generations

BATCH = {
    "prompts": ["1+1=", "2+2=", "3+3="],
    "responses": ["2", "5", "six"],
    "ground_truths": ["2", "4", ["6", "six"]],
    "rewards": [
        {"reward": 1.0, "format_reward": 1.0, "answer_reward": 1.0},
        {"reward": 0.0, "format_reward": 1.0, "answer_reward": 0.0},
        {"reward": 1.0, "format_reward": 1.0, "answer_reward": 1.0},
    ],
    "entropies": [0.25, None, 0.75],
    "lengths": [1, 8, 3],
}


def test_log_generations_rows():
    rows = log_generations(**BATCH)["rows"]
    assert len(rows) == 3
    assert rows[0] == {
        "prompt": "1+1=",
        "response": "2",
        "ground_truth": "2",
        "reward": 1.0,
        "format_reward": 1.0,
        "answer_reward": 1.0,
        "entropy": 0.25,
        "length": 1,
        "truncated": False,
    }
    assert rows[1]["entropy"] is None
    assert rows[2]["ground_truth"] == ["6", "six"]


def test_log_generations_summary():
    summary = log_generations(**BATCH)["summary"]
    assert summary["accuracy"] == pytest.approx(2 / 3)
    assert summary["length"] == 4.0  # (1 + 8 + 3) / 3
    assert summary["length_correct"] == 2.0  # (1 + 3) / 2
    assert summary["length_incorrect"] == 8.0
    assert summary["entropy"] == 0.625  # (1 x 0.25 + 3 x 0.75) / (1 + 3)


def test_log_generations_truncated_and_extra_columns():
    result = log_generations(
        **BATCH, truncated=[False, True, False], extra=[{"advantage": float(n)} for n in range(3)]
    )
    assert [row["truncated"] for row in result["rows"]] == [False, True, False]
    assert [row["advantage"] for row in result["rows"]] == [0.0, 1.0, 2.0]
    assert result["summary"]["truncated"] == pytest.approx(1 / 3)


def test_log_generations_writes_nothing_without_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log_generations(**BATCH)
    assert list(tmp_path.iterdir()) == []


def test_log_generations_files(tmp_path):
    # A name with a dot stays whole: the suffix is added, not put in the place of another.
    path = tmp_path / "new" / "step_1.5"
    result = log_generations(**BATCH, path=path, title="After step 1.5")
    assert {file.name for file in path.parent.iterdir()} == {"step_1.5.jsonl", "step_1.5.md"}
    lines = (tmp_path / "new" / "step_1.5.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == result["rows"]
    page = (tmp_path / "new" / "step_1.5.md").read_text(encoding="utf-8")
    assert page.startswith("# After step 1.5\n")
    assert "| accuracy | 0.6667 |" in page
    assert "## 0: reward 1, format_reward 1, answer_reward 1, entropy 0.25, length 1\n" in page
    assert "Ground truth: `['6', 'six']`" in page


def test_truncated_responses_are_marked(tmp_path):
    log_generations(**BATCH, path=tmp_path / "t", truncated=[False, True, False])
    headings = [
        line for line in (tmp_path / "t.md").read_text().splitlines() if line.startswith("## ")
    ]
    assert [line.endswith(", truncated") for line in headings] == [False, True, False]


def test_text_cannot_close_its_fence(tmp_path):
    response = "```python\nprint(1)\n```\n````\n# no heading\nπ"
    log_generations(["p"], [response], ["1"], [{"reward": 0.0}], [None], [9], tmp_path / "t")
    page = (tmp_path / "t.md").read_text(encoding="utf-8")
    # Its longest run has four backticks, so five fence it.
    assert f"\n`````\n{response}\n`````\n" in page
    assert "\n```\np\n```\n" in page
    assert "π" in (tmp_path / "t.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("column", BATCH)
def test_columns_of_different_lengths_are_an_error(column):
    with pytest.raises(ValueError, match="one entry per generation, got") as error:
        log_generations(**{**BATCH, column: BATCH[column][:2]})
    assert f"'{column}': 2" in str(error.value)


def test_no_generations():
    assert log_generations([], [], [], [], [], []) == {
        "rows": [],
        "summary": {"num_examples": 0.0},
    }
