"""Reference outputs: the data's own, another folder's, or a file's."""

import json

import pytest
from judging import alpaca_folder, write_folder

from trl_r1zero.evaluation.evaluated import EvaluatedFolder, References, references_for


@pytest.fixture
def folder(tmp_path) -> EvaluatedFolder:
    pairs = [("a0", "r0"), ("a1", ""), ("a2", "r2")]
    return EvaluatedFolder.read(alpaca_folder(tmp_path / "answers", pairs))


def rows(*outputs: str, generator: str | None = "gpt") -> list[dict]:
    return [
        {"instruction": f"question {n}", "output": text, "generator": generator, "dataset": "d"}
        for n, text in enumerate(outputs)
    ]


def test_of_the_data(folder):
    expected = References("davinci", {0: "r0", 1: "", 2: "r2"}, is_of_the_data=True)
    assert references_for(folder) == expected


@pytest.mark.parametrize("form", ["array", "lines"])
def test_of_a_file(folder, tmp_path, form):
    others = [*reversed(rows("b0", "", "b2")), {"instruction": "other", "output": "x"}]
    text = json.dumps(others, indent=1) if form == "array" else "\n".join(map(json.dumps, others))
    (tmp_path / "outputs.json").write_text(text)
    found = references_for(folder, tmp_path / "outputs.json")
    assert found == References("gpt", {0: "b0", 1: "", 2: "b2"})


def test_a_file_without_a_generator_is_named_after_itself(folder, tmp_path):
    (tmp_path / "mine.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows("b0", "b1", "b2", generator=None))
    )
    assert references_for(folder, tmp_path / "mine.jsonl").generator == "mine"


def test_of_another_folder(folder, tmp_path):
    """Its first completions count, whatever their order and number."""
    answers = [
        {"example": 0, "question": "question 2", "answer": "c2"},
        {"example": 0, "completion": 1, "question": "question 2", "answer": "not this"},
        {"example": 1, "question": "question 0", "answer": "c0"},
        {"example": 1, "completion": 1, "question": "question 0", "answer": "not this"},
        {"example": 2, "question": "question 1", "answer": ""},
        {"example": 2, "completion": 1, "question": "question 1", "answer": "not this"},
    ]
    other = write_folder(tmp_path / "other", "alpaca_eval", answers, model="org/other")
    assert references_for(folder, other) == References("org/other", {0: "c0", 1: "", 2: "c2"})


def test_the_same_instruction_twice(tmp_path):
    answers = [{"question": question, "answer": "a", "ground_truth": "r"} for question in "abab"]
    folder = EvaluatedFolder.read(write_folder(tmp_path / "answers", "alpaca_eval", answers))
    path = tmp_path / "outputs.jsonl"
    texts = [("b", "1"), ("a", "2"), ("a", "3"), ("b", "4")]
    path.write_text("".join(json.dumps({"instruction": i, "output": o}) + "\n" for i, o in texts))
    assert references_for(folder, path).outputs == {0: "2", 1: "1", 2: "3", 3: "4"}
    path.write_text(
        "".join(json.dumps({"instruction": i, "output": o}) + "\n" for i, o in texts[:3])
    )
    with pytest.raises(ValueError, match="has no output for 1 of the 4 instructions"):
        references_for(folder, path)


def test_missing_instructions_are_named(tmp_path):
    folder = EvaluatedFolder.read(alpaca_folder(tmp_path / "answers", [("a", "r")] * 9))
    (tmp_path / "some.json").write_text(json.dumps(rows("b0", "b1")))
    with pytest.raises(ValueError) as error:
        references_for(folder, tmp_path / "some.json")
    text = str(error.value)
    assert "has no output for 7 of the 9 instructions" in text
    assert "'question 2'" in text and "'question 6'" in text and "'question 7'" not in text
    assert "and 2 more" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"instruction": "question 0"}]', "field 'output': got None"),
        ('[{"instruction": "question 0", "output": 3}]', "field 'output': got 3"),
        ('[{"output": "a"}]', "field 'instruction'"),
        ("[3]", "got a JSON int"),
        ("[{", "not JSON"),
        ("", "a file without rows"),
    ],
)
def test_files_that_are_none(folder, tmp_path, text, message):
    (tmp_path / "outputs.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        references_for(folder, tmp_path / "outputs.json")


def test_no_such_file(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        references_for(folder, tmp_path / "gone.json")


def test_data_without_reference_outputs(tmp_path):
    path = write_folder(tmp_path / "a", "alpaca_eval", [{"answer": "a", "ground_truth": None}])
    with pytest.raises(ValueError, match="example 0 has no reference output"):
        references_for(EvaluatedFolder.read(path))
