"""Examples and a prompt to a data set."""

import pytest

from trl_r1zero.data.prompts import Prompt, load_prompt
from trl_r1zero.data.rows import build_dataset
from trl_r1zero.data.tasks import get_task
from trl_r1zero.data.tasks.base import Example

PROMPT = Prompt("p", "Q: {question}\nA:", (), "boxed")


def test_build_dataset():
    dataset = build_dataset(
        [Example("a", "1", {"level": 2}), Example("b", "2", {"subject": "x"})], PROMPT
    )
    assert dataset.column_names == ["prompt", "question", "ground_truth", "level", "subject"]
    assert list(dataset) == [
        {"prompt": "Q: a\nA:", "question": "a", "ground_truth": "1", "level": 2, "subject": None},
        {"prompt": "Q: b\nA:", "question": "b", "ground_truth": "2", "level": None, "subject": "x"},
    ]


def test_build_dataset_makes_all_ground_truths_lists_where_one_is():
    dataset = build_dataset([Example("a", "1"), Example("b", ["2", "3"])], PROMPT)
    assert dataset["ground_truth"][:] == [["1"], ["2", "3"]]


def test_build_dataset_keeps_ground_truths_that_are_dicts():
    truths = [{"answer": "A", "options": ["1", "2"]}, {"answer": "B", "options": ["3", "4"]}]
    dataset = build_dataset([Example("a", truths[0]), Example("b", truths[1])], PROMPT)
    assert dataset.to_list() == [
        {"prompt": f"Q: {question}\nA:", "question": question, "ground_truth": truth}
        for question, truth in zip("ab", truths, strict=True)
    ]


def test_build_dataset_of_the_embedded_task():
    task = get_task("chain_arithmetic")
    dataset = build_dataset(task.load(limit=2), load_prompt(task.default_prompt))
    assert dataset[0] == {
        "prompt": "Q: 26 - 8 + 4 + 7 + 6\nA: <think>",
        "question": "26 - 8 + 4 + 7 + 6",
        "ground_truth": "35",
    }


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], r"got no examples"),
        (
            [Example("a", "1", {"prompt": "x"})],
            r"got the key 'prompt', which is a column of its own",
        ),
        ([Example("a", "1", {"k": {1, 2}})], r"metadata 'k' of example 0: .*what JSON can hold"),
        (
            [Example("a", "1", {"k": 2}), Example("b", "1", {"k": "2"})],
            r"metadata 'k' of example 1: got '2' \(str\), expected int as in the rows before",
        ),
        (
            [Example("a", {"answer": "A"}), Example("b", "B")],
            r"ground_truth of example 1: got 'B', expected a dict of \['answer'\] as in the rows",
        ),
        (
            [Example("a", "A"), Example("b", {"answer": "B"})],
            r"ground_truth of example 1: got {'answer': 'B'}, expected no dict as in the rows",
        ),
        (
            [Example("a", {"answer": "A"}), Example("b", {"letter": "B"})],
            r"ground_truth of example 1: got {'letter': 'B'}, expected a dict of \['answer'\]",
        ),
    ],
)
def test_build_dataset_errors(examples, message):
    with pytest.raises(ValueError, match=message):
        build_dataset(examples, PROMPT)
