"""The tasks of the four benchmarks: questions, ground truths, and rows that are not right."""

import json
from collections import Counter
from pathlib import Path

import pytest

from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.rows import build_dataset
from trl_r1zero.data.tasks import TASKS, get_task
from trl_r1zero.data.tasks.base import Example
from trl_r1zero.rewards import gsm8k_reward_fn, mmlu_reward_fn

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"
needs_real_data = pytest.mark.skipif(
    not REAL_DATA.is_dir(), reason="the published data sets are not beside the repository"
)

ROW = {
    "question": "Capital of {France}?",
    "subject": "world_religions",
    "choices": ["Lyon", "Paris", "Nice", "Lille"],
    "answer": 1,
}
INSTRUCTION = {"instruction": "i", "output": "o", "generator": "g", "dataset": "d"}
REQUEST = {"id": "sst_001", "harm_area": "h", "category": "c", "prompts_final": "p"}


def written(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """Two subjects of three questions each, laid out as published."""
    for split in ("dev", "val", "test"):
        (tmp_path / split).mkdir()
        for subject in ("us_foreign_policy", "anatomy"):
            lines = [
                f'"{split} {subject}, {number}",a,b,c,d,{"ABC"[number]}' for number in range(3)
            ]
            (tmp_path / split / f"{subject}_{split}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def questions(examples):
    """What was asked, without the words around it."""
    return [e.question.partition("Question: ")[2].partition("\n")[0] for e in examples]


# Prompts and grading


@pytest.mark.parametrize("name", ["mmlu", "alpaca_eval", "simple_safety_tests"])
def test_the_default_prompt_is_zero_shot_and_free_text_is_all_that_is_read(name):
    task = get_task(name)
    assert task.default_prompt == "zero_shot"
    with pytest.raises(
        ValueError,
        match=rf"task '{name}' with prompt 'r1_zero': unknown answer_format 'tags'.* Allowed: text",
    ):
        task.reward_fn(load_prompt("r1_zero"))


@pytest.mark.parametrize("prompt", ["zero_shot", "alpaca"])
def test_what_grades_free_text(prompt):
    prompt = load_prompt(prompt)
    assert get_task("mmlu").reward_fn(prompt) is mmlu_reward_fn
    assert get_task("gsm8k").reward_fn(prompt) is gsm8k_reward_fn
    assert get_task("alpaca_eval").reward_fn(prompt) is None
    assert get_task("simple_safety_tests").reward_fn(prompt) is None


def test_what_is_evaluated_on():
    splits = {name: task.eval_split for name, task in TASKS.items()}
    tests = {
        *("gsm8k", "mmlu", "alpaca_eval", "simple_safety_tests"),
        *("math500", "aime", "amc", "minerva", "olympiad_bench"),
    }
    assert splits == {name: "test" if name in tests else "validation" for name in TASKS}


# MMLU


def test_mmlu_asks_in_the_words_of_the_handout(tmp_path):
    assert get_task("mmlu").load(written(tmp_path, ROW)) == [
        Example(
            "Answer the following multiple choice question about world religions. Respond with a "
            'single sentence of the form "The correct answer is _", filling the blank with the '
            "letter corresponding to the correct answer (i.e., A, B, C or D).\n"
            "\n"
            "Question: Capital of {France}?\n"
            "A. Lyon\n"
            "B. Paris\n"
            "C. Nice\n"
            "D. Lille\n"
            "Answer:",
            {"answer": "B", "options": ["Lyon", "Paris", "Nice", "Lille"]},
            {"subject": "world_religions"},
        )
    ]


def test_mmlu_of_csv_and_of_json_lines_is_the_same(tmp_path):
    path = tmp_path / "world_religions_test.csv"
    path.write_text("Capital of {France}?,Lyon,Paris,Nice,Lille,B\n")
    task = get_task("mmlu")
    assert task.load(str(path), "test") == task.load(written(tmp_path, ROW), "test")


@pytest.mark.parametrize(
    ("split", "name"), [("dev", "dev"), ("validation", "val"), ("val", "val"), ("test", "test")]
)
def test_mmlu_reads_a_folder_subject_by_subject(folder, split, name):
    examples = get_task("mmlu").load(str(folder), split)
    subjects = ["anatomy"] * 3 + ["us_foreign_policy"] * 3
    assert [example.metadata["subject"] for example in examples] == subjects
    assert questions(examples) == [
        f"{name} {subject}, {number}"
        for number, subject in zip([0, 1, 2] * 2, subjects, strict=True)
    ]
    assert [example.ground_truth["answer"] for example in examples] == list("ABCABC")


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("us_foreign_policy_test.csv", "us_foreign_policy"),
        ("us_foreign_policy.csv", "us_foreign_policy"),
        ("test.csv", "test"),
        ("_test.csv", "_test"),
    ],
)
def test_mmlu_names_the_subject_after_the_file(tmp_path, name, subject):
    (tmp_path / name).write_text("q,a,b,c,d,D\n")
    (example,) = get_task("mmlu").load(str(tmp_path / name))
    assert example.metadata == {"subject": subject}


def test_mmlu_some_of_each_subject_or_one_subject(folder):
    two = get_task("mmlu", num_per_subject=2)
    assert questions(two.load(str(folder), "dev")) == [
        "dev anatomy, 0", "dev anatomy, 1", "dev us_foreign_policy, 0", "dev us_foreign_policy, 1",
    ]  # fmt: skip
    assert len(two.load(str(folder), "dev", limit=3)) == 3
    one = get_task("mmlu", subject="us_foreign_policy", num_per_subject=1)
    assert questions(one.load(str(folder), "dev")) == ["dev us_foreign_policy, 0"]
    with pytest.raises(ValueError, match=r"unknown subject 'anatomi'; did you mean 'anatomy'\?"):
        get_task("mmlu", subject="anatomi").load(str(folder), "dev")
    with pytest.raises(ValueError, match="num_per_subject: got 0, expected at least 1"):
        get_task("mmlu", num_per_subject=0)


def test_mmlu_without_the_split(folder):
    with pytest.raises(
        FileNotFoundError, match=r"has no train/\*_train.csv for .* 'train'; .* in: dev, test, val"
    ):
        get_task("mmlu").load(str(folder), "train")
    with pytest.raises(FileNotFoundError, match=r"has no test.jsonl"):
        get_task("mmlu").load(str(folder / "dev"), "test")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q,a,b,c,d", r"test.csv:2: got 5 fields .*, expected 6: question, A, B, C, D, answer"),
        ("q,a,b,c,d,E", r"test.csv:2: field 'answer': got 'E', expected A, B, C or D"),
        ("q,a,b,c,d,AB", r"test.csv:2: field 'answer': got 'AB', expected A, B, C or D"),
        ("q,a,b,c,d,b", r"test.csv:2: field 'answer': got 'b', expected A, B, C or D"),
        ("q,a,,c,d,B", r"test.csv:2: field 'B': got '' \(str\), expected a non-empty string"),
        (",a,b,c,d,B", r"test.csv:2: field 'question': got ''"),
        ('q,a,b,c,"d,B', r"test.csv:2: got a record that is no CSV"),
    ],
)
def test_mmlu_errors_of_csv(tmp_path, line, message):
    path = tmp_path / "anatomy_test.csv"
    path.write_text(f"q,a,b,c,d,D\n{line}\n")
    with pytest.raises(ValueError, match=message):
        get_task("mmlu").load(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"choices": ["a", "b", "c"]},
            r"rows.jsonl:2: field 'choices': got \['a', 'b', 'c'\] \(list\), exp",
        ),
        (
            {"choices": "abcd"},
            r"rows.jsonl:2: field 'choices': got 'abcd' \(str\), expected a list of",
        ),
        (
            {"choices": ["a", "b", "c", 4]},
            r"rows.jsonl:2: field 'choices': got 4 \(int\) in it",
        ),
        (
            {"choices": ["a", "b", "c", " "]},
            r"jsonl:2: field 'choices': got ' ' \(str\) in it",
        ),
        ({"choices": None}, r"rows.jsonl:2: field 'choices': got None"),
        ({"answer": 4}, r"rows.jsonl:2: field 'answer': got 4 \(int\), expected the number of the"),
        ({"answer": -1}, r"rows.jsonl:2: field 'answer': got -1"),
        ({"answer": "B"}, r"rows.jsonl:2: field 'answer': got 'B'"),
        ({"answer": True}, r"rows.jsonl:2: field 'answer': got True"),
        ({"answer": 1.0}, r"rows.jsonl:2: field 'answer': got 1.0"),
        ({"answer": None}, r"rows.jsonl:2: field 'answer': got None"),
        ({"subject": None}, r"rows.jsonl:2: field 'subject': got None"),
        ({"question": ""}, r"rows.jsonl:2: field 'question': got ''"),
    ],
)
def test_mmlu_errors_of_json_lines(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        get_task("mmlu").load(written(tmp_path, ROW, {**ROW, **change}))


@needs_real_data
def test_mmlu_on_the_published_files():
    task = get_task("mmlu")
    test = task.load(str(REAL_DATA / "mmlu"), "test")
    assert len(test) == 14_042
    assert len({example.metadata["subject"] for example in test}) == 57
    assert Counter(example.ground_truth["answer"] for example in test).keys() == set("ABCD")
    assert len(task.load(str(REAL_DATA / "mmlu"), "dev")) == 285
    few = get_task("mmlu", num_per_subject=4).load(str(REAL_DATA / "mmlu"), "test")
    assert set(Counter(example.metadata["subject"] for example in few).values()) == {4}
    assert few[0].question.splitlines()[2:] == [
        "Question: Find the degree for the given field extension Q(sqrt(2), sqrt(3), sqrt(18)) "
        "over Q.",
        "A. 0",
        "B. 4",
        "C. 2",
        "D. 6",
        "Answer:",
    ]
    assert few[0].ground_truth == {"answer": "B", "options": ["0", "4", "2", "6"]}
    # As an evaluation reads them, the questions with braces among them.
    dataset = build_dataset(test, load_prompt("zero_shot"))
    assert dataset[:]["ground_truth"] == [example.ground_truth for example in test]
    assert all(
        f"```{question}```" in prompt
        for question, prompt in zip(dataset["question"], dataset["prompt"], strict=True)
    )


# GSM8K


def test_gsm8k_with_a_line_for_the_answer(tmp_path):
    source = written(tmp_path, {"question": "1+1?", "answer": "#### 2"})
    assert get_task("gsm8k").load(source) == [Example("1+1?", "2")]
    with_line = get_task("gsm8k", answer_line=True)
    assert with_line.load(source) == [Example("1+1?\nAnswer:", "2")]


# AlpacaEval


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_alpaca_eval(tmp_path, name):
    rows = [INSTRUCTION, {**INSTRUCTION, "instruction": "j"}]
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_text(json.dumps(rows) if name.endswith(".json") else lines)
    metadata = {"dataset": "d", "generator": "g"}
    examples = get_task("alpaca_eval").load(str(tmp_path / name))
    assert examples == [Example("i", "o", metadata), Example("j", "o", metadata)]


@pytest.mark.parametrize("source", [None, "tatsu-lab/alpaca_eval"])
def test_alpaca_eval_reads_the_file_on_the_hub(tmp_path, monkeypatch, source):
    """The loading script beside it cannot be run any more."""
    asked = []

    def download(*arguments, **settings):
        asked.append((arguments, settings))
        return written(tmp_path, INSTRUCTION)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert len(get_task("alpaca_eval").load(source, "test")) == 1
    assert asked == [(("tatsu-lab/alpaca_eval", "alpaca_eval.json"), {"repo_type": "dataset"})]


@pytest.mark.parametrize("field", INSTRUCTION)
def test_alpaca_eval_errors(tmp_path, field):
    source = written(tmp_path, INSTRUCTION, {**INSTRUCTION, field: ""})
    with pytest.raises(ValueError, match=rf"rows.jsonl:2: field '{field}': got ''"):
        get_task("alpaca_eval").load(source)


@needs_real_data
def test_alpaca_eval_on_the_published_file():
    examples = get_task("alpaca_eval").load(str(REAL_DATA / "alpaca_eval.jsonl"))
    assert len(examples) == len({example.question for example in examples}) == 805
    assert {example.metadata["generator"] for example in examples} == {"text_davinci_003"}
    assert examples[0].ground_truth.startswith("Some famous actors that started their careers on")


# SimpleSafetyTests


@pytest.mark.parametrize("name", ["prompts_final", "prompt"])
def test_simple_safety_tests(tmp_path, name):
    path = tmp_path / "rows.csv"
    path.write_text(f'id,harm_area,counter,category,{name}\nsst_001,"h, i",1,c,p\n')
    row = {"id": "sst_001", "harm_area": "h, i", "category": "c", name: "p"}
    metadata = {"id": "sst_001", "harm_area": "h, i", "category": "c"}
    task = get_task("simple_safety_tests")
    assert task.load(str(path)) == task.load(written(tmp_path, row))
    assert task.load(str(path)) == [Example("p", "safe", metadata)]


@pytest.mark.parametrize("field", REQUEST)
def test_simple_safety_tests_errors(tmp_path, field):
    source = written(tmp_path, REQUEST, {key: REQUEST[key] for key in REQUEST if key != field})
    with pytest.raises(ValueError, match=rf"rows.jsonl:2: field '{field}': got nothing"):
        get_task("simple_safety_tests").load(source)


@needs_real_data
def test_simple_safety_tests_on_the_published_file():
    examples = get_task("simple_safety_tests").load(str(REAL_DATA / "simple_safety_tests.csv"))
    assert len({example.metadata["id"] for example in examples}) == len(examples) == 100
    assert len({example.metadata["harm_area"] for example in examples}) == 5
    assert {example.ground_truth for example in examples} == {"safe"}


# Files for other tools


def test_output_rows():
    metadata = {"dataset": "koala", "generator": "text_davinci_003"}
    assert get_task("alpaca_eval").output_row("i", "r", metadata, "my/model") == {
        "instruction": "i",
        "output": "r",
        "generator": "my/model",
        "dataset": "koala",
    }
    row = get_task("simple_safety_tests").output_row("p", "r", {}, "my/model")
    assert row == {"prompts_final": "p", "output": "r"}
    assert get_task("mmlu").output_file is None
    with pytest.raises(NotImplementedError, match="task 'mmlu' has no output_file"):
        get_task("mmlu").output_row("q", "r", {}, "my/model")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("mmlu", "datasets.load_dataset('cais/mmlu', 'all', split='test').to_json('test.jsonl')"),
        ("alpaca_eval", "hf download tatsu-lab/alpaca_eval alpaca_eval.json --repo-type dataset"),
        ("simple_safety_tests", "datasets.load_dataset('Bertievidgen/SimpleSafetyTests'"),
        ("gsm8k", "datasets.load_dataset('openai/gsm8k', 'main', split='test')"),
    ],
)
def test_without_a_network_it_is_said_how_to_get_the_data(name, command, monkeypatch, tmp_path):
    import datasets.config
    import huggingface_hub.constants

    # As HF_HUB_OFFLINE=1 sets them when the libraries are imported.
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    task = get_task(name)
    with pytest.raises(OSError, match="and give its path as the source") as error:
        task.load(None, task.eval_split)
    assert command in str(error.value)
