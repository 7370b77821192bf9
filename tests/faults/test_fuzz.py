"""Whatever stands in a file, reading it ends in a right result, or in an error that names it."""

import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trl_r1zero.data.files import read_csv, read_json, read_jsonl
from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.recipe.evaluation_arguments import EvaluationArguments
from trl_r1zero.recipe.parsing import parse_recipe

fuzz = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
LINES = st.lists(JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40))
FILES = st.binary(max_size=200) | LINES.map(b"\n".join)


def outcome(read, path: Path, *kinds: type[Exception]) -> object:
    """What it gives; None for an error of these kinds, which has to name the file."""
    try:
        return read(path)
    except kinds as error:
        assert path.name in str(error)
        return None


@fuzz
@given(content=FILES)
def test_rows(content, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    for reader in (read_jsonl, read_json, read_csv):
        rows = outcome(lambda path, reader=reader: list(reader(path)), path, ValueError)
        assert rows is None or all(isinstance(row.fields, dict) for row in rows)


@fuzz
@given(content=FILES)
def test_metrics(content, tmp_path):
    from trl_r1zero.trainers import read_metrics

    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    lines = outcome(lambda path: read_metrics(path.parent), path, ValueError)
    assert lines is None or all(isinstance(line, dict) for line in lines)


@fuzz
@given(
    content=st.binary(max_size=80)
    | st.text(max_size=80).map(lambda text: f"answer_format: boxed\n---\n{text}".encode())
)
def test_prompts(content, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_bytes(content)
    prompt = outcome(lambda path: load_prompt(str(path)), path, ValueError)
    assert prompt is None or "a question" in prompt.format("a question")


KEYS = st.sampled_from(["model", "task", "n", "temperature", "server", "base", "other"])


@fuzz
@given(
    content=st.binary(max_size=120)
    | st.text(max_size=60).map(str.encode)
    | st.dictionaries(KEYS, JSON, max_size=4).map(lambda recipe: json.dumps(recipe).encode())
)
def test_recipes(content, tmp_path):
    """A ValueError is what commands tell in a line; nothing else may come."""
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    try:
        parse_recipe((EvaluationArguments,), ["--config", str(path)])
    except (ValueError, OSError) as error:
        assert str(error)
