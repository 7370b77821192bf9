"""Rows that cannot be used: all of them in one error, or left out and counted."""

import json
import logging
import pickle
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from trl_r1zero.data.bad_rows import (
    MOST_SHOWN,
    BadRowError,
    BadRows,
    reading,
    skipped_in_words,
    usable,
)
from trl_r1zero.data.files import Row
from trl_r1zero.data.packing import PackedSFTDataset
from trl_r1zero.data.preferences import load_hh
from trl_r1zero.data.prompts import format_alpaca, load_prompt
from trl_r1zero.data.tasks import get_task
from trl_r1zero.data.tasks.base import Example, RowTask, Task
from trl_r1zero.data.traces import load_traces
from trl_r1zero.recipe.data_arguments import InstructionArguments, PreferenceArguments
from trl_r1zero.recipe.task_arguments import TaskArguments

MATH, PROMPT = get_task("math"), load_prompt("r1_zero")
GOOD = {"problem": "1+1?", "answer": "2"}
BAD = [
    {"problem": "1+1?", "answer": ""},
    {"problem": "1+1?", "answer": " \n"},
    {"problem": "1+1?", "answer": True},
    {"problem": "1+1?"},
    {"problem": None, "answer": "2"},
    {"answer": "2"},
    {},
]
REFUSED = "on_bad_row: skip leaves"


def written(tmp_path, *rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_an_error_names_all_bad_rows(tmp_path):
    source = written(tmp_path, GOOD, *BAD, GOOD)
    with pytest.raises(ValueError, match=REFUSED) as caught:
        MATH.load(source)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{source}: 7 of 9 rows cannot be used:"
    assert sorted(line.split(":")[1] for line in lines[1:-1]) == list("2345678")
    assert lines[-1] == "on_bad_row: skip leaves them out"


def test_many_bad_rows_of_a_kind_are_counted(tmp_path):
    source = written(tmp_path, GOOD, *BAD[:1] * 30, BAD[3])
    with pytest.raises(ValueError, match="31 of 32 rows") as caught:
        MATH.load(source)
    text = str(caught.value)
    assert text.count("got '' (str)") == MOST_SHOWN
    assert f"and {30 - MOST_SHOWN} more such rows" in text
    assert "rows.jsonl:32: field 'answer': got neither answer nor solution" in text


def test_skipped_rows_are_counted_and_logged_once(tmp_path, caplog):
    source = written(tmp_path, GOOD, *BAD[:3], {"problem": "", "answer": "2"}, GOOD)
    examples = MATH.load(source, on_bad_row="skip")
    assert [example.where for example in examples] == [f"{source}:1", f"{source}:6"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"{source}: left out 4 of 6 rows (3 x answer: expected a non-empty string; 1 x problem: "
        f"expected a non-empty string): {source}:2, {source}:3, {source}:4, {source}:5"
    )


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_the_main_process_says_it(tmp_path, caplog, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    MATH.load(written(tmp_path, GOOD, BAD[0]), on_bad_row="skip")
    assert len(caplog.records) == (rank == "0")


def test_the_caller_may_count_over_several_files(tmp_path):
    bad_rows = BadRows("skip")
    for name in ("a.jsonl", "b.jsonl"):
        MATH.load(written(tmp_path, GOOD, BAD[0], name=name), on_bad_row=bad_rows)
    facts = bad_rows.facts()
    assert facts == {
        "skipped": 2,
        "of": 4,
        "reasons": {"answer: expected a non-empty string": 2},
        "first": [f"{tmp_path}/a.jsonl:2", f"{tmp_path}/b.jsonl:2"],
    }
    assert json.loads(json.dumps(facts)) == facts
    assert skipped_in_words(facts).startswith("left out 2 of 4 rows (2 x answer: expected a")


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_file_that_is_broken_as_a_whole_is_an_error_in_any_case(tmp_path, on_bad_row):
    path = tmp_path / "broken.jsonl"
    for content, message in {
        '{"problem": "q", "answer": "1"}\n{"problem": \n': "broken.jsonl:2: got text that is not",
        '{"problem": "q", "answer": "1"}\n[1]\n': "broken.jsonl:2: got a JSON list",
        "": "got a file without rows",
        '{"question": "q", "answer": "1"}\n' * 3: "none of 3 rows can be used:",
    }.items():
        path.write_text(content)
        with pytest.raises(ValueError, match=message) as caught:
            MATH.load(str(path), on_bad_row=on_bad_row)
        assert "on_bad_row" not in str(caught.value)


def test_an_unknown_choice(tmp_path):
    with pytest.raises(ValueError, match="unknown on_bad_row 'skipp'; did you mean 'skip'"):
        MATH.load(written(tmp_path, GOOD), on_bad_row="skipp")


def test_the_first_so_many_are_usable_ones(tmp_path):
    source = written(tmp_path, BAD[0], GOOD, BAD[0], GOOD, BAD[0])
    bad_rows = BadRows("skip")
    assert len(MATH.load(source, limit=2, on_bad_row=bad_rows)) == 2
    assert (len(bad_rows.errors), bad_rows.read) == (2, 4)  # the last is not read
    with pytest.raises(ValueError, match="1 of 2 rows"):
        MATH.load(source, limit=1)


def test_outside_of_a_reading_the_first_bad_row_is_an_error(tmp_path):
    examples = MATH.examples(written(tmp_path, GOOD, *BAD), "train")
    next(examples)
    with pytest.raises(BadRowError, match=r"rows.jsonl:2: field 'answer'"):
        next(examples)


def test_readings_inside_of_one_another():
    def odd(row: int) -> int:
        if row % 2 == 0:
            raise BadRowError(f"row {row}", "even", "even")
        return row

    with reading("outer", BadRows("skip")) as outer:
        for number in usable(odd, range(4)):
            with reading("inner", BadRows("skip")) as inner:
                assert list(usable(odd, [number, 2])) == [number]
            assert (inner.read, len(inner.errors)) == (2, 1)
    assert (outer.read, len(outer.errors)) == (4, 2)


def test_an_error_of_a_row_survives_another_process():
    error = pickle.loads(pickle.dumps(BadRowError("f:1", "wrong", "kind")))
    assert (str(error), error.where, error.reason) == ("f:1: wrong", "f:1", "kind")


# Tasks of all kinds


def test_mmlu_in_both_forms(tmp_path):
    folder = tmp_path / "mmlu" / "test"
    folder.mkdir(parents=True)
    (folder / "anatomy_test.csv").write_text("q,a,b,c,d,A\nq,a,b,c,d,X\nr,a,,c,d,B\ns,a,b,c,d,D\n")
    task = get_task("mmlu")
    examples = task.load(str(tmp_path / "mmlu"), "test", on_bad_row="skip")
    assert [example.ground_truth["answer"] for example in examples] == ["A", "D"]
    row = {"question": "q", "subject": "s", "choices": list("abcd"), "answer": 1}
    rows = [{**row, "answer": 4}, row, {**row, "choices": None}]
    assert len(task.load(written(tmp_path, *rows), on_bad_row="skip")) == 1


@pytest.mark.parametrize(
    ("task", "good", "bad"),
    [
        ("gsm8k", {"question": "q", "answer": "so #### 2"}, {"question": "q", "answer": "2"}),
        (
            "alpaca_eval",
            {"instruction": "i", "output": "o", "generator": "g", "dataset": "d"},
            {"instruction": "i", "output": "", "generator": "g", "dataset": "d"},
        ),
        (
            "simple_safety_tests",
            {"id": "1", "harm_area": "h", "category": "c", "prompts_final": "p"},
            {"id": "1", "harm_area": "h", "category": "c", "prompts_final": " "},
        ),
    ],
)
def test_other_tasks(tmp_path, task, good, bad):
    source = written(tmp_path, bad, good, bad)
    assert len(get_task(task).load(source, on_bad_row="skip")) == 1
    with pytest.raises(ValueError, match="2 of 3 rows cannot be used"):
        get_task(task).load(source)


@dataclass(frozen=True)
class FirstOnly(RowTask):
    """A task of somebody else's, that chooses among the rows."""

    name = "first_only"
    default_prompt = "r1_zero"

    def example(self, row: Row) -> Example:
        return Example(row.text("q"), row.text("a"))

    def examples(self, source: str | None, split: str) -> Iterator[Example]:
        for example in super().examples(source, split):
            if example.ground_truth != "not this":
                yield example


@dataclass(frozen=True)
class WithoutRows(Task):
    """One that reads by itself, so that it ends at the first bad row."""

    name = "without_rows"
    default_prompt = "r1_zero"

    def examples(self, source: str | None, split: str) -> Iterator[Example]:
        for number, text in enumerate(["1", "", "3"]):
            row = Row(f"mine {number}", {"a": text})
            yield Example("q", row.text("a"))


def test_tasks_of_somebody_elses(tmp_path):
    answers = ["1", "not this", "", "2"]
    source = written(tmp_path, *({"q": "q", "a": answer} for answer in answers))
    examples = FirstOnly().load(source, on_bad_row="skip")
    assert [example.ground_truth for example in examples] == ["1", "2"]
    with pytest.raises(ValueError, match="mine 1: field 'a'"):
        WithoutRows().load(on_bad_row="skip")


# Traces, pairs, instructions


TRACE = {"prompt": "p", "response": "r", "ground_truth": "1"}
BAD_TRACES = [
    {"prompt": "p", "response": ""},
    {"prompt": "p", "response": " \n"},
    {"prompt": "p", "response": 4},
    {"prompt": "p", "response": None},
    {"prompt": "", "response": "r"},
    {"prompt": "p", "response": "r", "ground_truth": 4},
    {"problem": "q", "answer": "1"},
    {},
]


@pytest.mark.parametrize("first", [TRACE, BAD_TRACES[3]])
def test_traces(tmp_path, first):
    source = written(tmp_path, first, TRACE, *BAD_TRACES, TRACE)
    traces = load_traces(MATH, PROMPT, source, on_bad_row="skip")
    assert {trace.response for trace in traces} == {"r"}
    assert len(traces) == 2 + (first is TRACE)
    number = len(BAD_TRACES) + (first is not TRACE)
    with pytest.raises(ValueError, match=rf"{number} of 11 rows cannot be used"):
        load_traces(MATH, PROMPT, source)


def test_traces_that_cannot_be_graded(tmp_path):
    source = written(tmp_path, TRACE, {"prompt": "p", "response": "r"})
    assert len(load_traces(MATH, PROMPT, source)) == 2
    assert len(load_traces(MATH, PROMPT, source, graded=True, on_bad_row="skip")) == 1


def test_worked_solutions(tmp_path):
    row = {"problem": "q", "solution": r"so \boxed{4}"}
    source = written(tmp_path, row, {"problem": "q", "answer": "4"}, TRACE, row, BAD_TRACES[0])
    bad_rows = BadRows("skip")
    assert len(load_traces(MATH, PROMPT, source, on_bad_row=bad_rows)) == 2
    assert [error.number for error in bad_rows.errors] == [2, 3, 5]
    assert bad_rows.read == 5


def conversations(chosen, rejected):
    return {
        name: f"\n\nHuman: Q?\n\nAssistant: {text}"
        for name, text in (("chosen", chosen), ("rejected", rejected))
    }


def test_pairs(tmp_path, caplog):
    rows = [conversations("a", "b"), conversations("a", "a "), {"chosen": "x", "rejected": "y"}]
    source = written(tmp_path, *rows, conversations("b", "c"))
    with pytest.raises(ValueError, match="2 of 4 rows cannot be used") as caught:
        load_hh(source)
    assert "rows.jsonl:2: chosen and rejected are equal" in str(caught.value)
    arguments = PreferenceArguments(train_data=source, num_eval_pairs=1, on_bad_row="skip")
    with pytest.raises(ValueError, match="num_validation"):  # pairs of one instruction
        arguments.load()
    assert arguments.skipped_rows["train_data"]["skipped"] == 2
    assert "1 x chosen and rejected are equal" in caplog.records[-1].getMessage()


def test_instructions_and_what_is_kept_of_them(tmp_path, tokenizer, caplog):
    rows = [{"prompt": "p", "response": "r"}, {"prompt": "", "response": "r"}, {"prompt": "p"}]
    source = written(tmp_path, *rows, {"prompt": "q", "response": ""})
    cache = {"cache_dir": tmp_path / "cache", "show_progress": False}
    with pytest.raises(ValueError, match="2 of 4 rows cannot be used"):
        PackedSFTDataset(tokenizer, source, 4, False, **cache)
    assert not list((tmp_path / "cache").glob("*"))
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        dataset = PackedSFTDataset(tokenizer, source, 4, False, on_bad_row="skip", **cache)
        assert dataset.num_documents == 2
        (record,) = caplog.records
        assert "left out 2 of 4 rows" in record.getMessage()
        with pytest.raises(ValueError, match=r"rows.jsonl:3: field 'response': got nothing"):
            PackedSFTDataset(tokenizer, source, 4, False, **cache)
    expected = sum(
        len(tokenizer(format_alpaca(*pair))["input_ids"]) + 1 for pair in (("p", "r"), ("q", ""))
    )
    assert dataset.num_tokens == expected
    arguments = InstructionArguments(
        source, source, 4, cache_dir=str(tmp_path / "cache"), on_bad_row="skip"
    )
    arguments.load(tokenizer, 0, False)
    assert arguments.skipped_rows["eval_data"]["of"] == 4


def test_a_recipe_says_what_was_left_out_of_which_data(tmp_path):
    good, bad = written(tmp_path, GOOD, GOOD, name="a.jsonl"), written(tmp_path, GOOD, BAD[0])
    arguments = TaskArguments(train_data=good, eval_data=bad, on_bad_row="skip")
    loaded = arguments.load()
    assert (len(loaded.train_dataset), len(loaded.eval_dataset)) == (2, 1)
    assert arguments.skipped_rows == {
        "eval_data": {
            "skipped": 1,
            "of": 2,
            "reasons": {"answer: expected a non-empty string": 1},
            "first": [f"{bad}:2"],
        }
    }
    with pytest.raises(ValueError, match=rf"eval_data \({bad}\): 1 of 2 rows cannot be used"):
        TaskArguments(train_data=good, eval_data=bad).load()
