"""A sample of the fault campaign; `make faults` runs all of it (TRL_R1ZERO_STRIKES: how many)."""

import json
import os
from functools import cache

import pytest
from faults.strikes import ASKS, RECIPES, TRAINER, comparable, strike, strikes, whole_run

from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks import get_task
from trl_r1zero.data.tasks.chain_arithmetic import solve_trace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipes(tmp_path_factory) -> dict[str, dict]:
    path = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    prompt = load_prompt("chain_arithmetic")
    rows = [
        {
            "prompt": prompt.format(example.question),
            "response": solve_trace(example.question),
            "ground_truth": example.ground_truth,
        }
        for example in get_task("chain_arithmetic", **RECIPES["sft.py"]["task_args"]).load()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {**RECIPES, "sft.py": {**RECIPES["sft.py"], "train_data": str(path)}}


@pytest.fixture(scope="module")
def whole(recipes, tiny_model_folder, tmp_path_factory):
    @cache
    def run(script: str) -> list[dict]:
        folder = tmp_path_factory.mktemp("whole") / "run"
        return whole_run(script, recipes[script], folder, tiny_model_folder)

    return run


@pytest.mark.parametrize(
    "one", list(strikes(int(os.environ.get("TRL_R1ZERO_STRIKES", "3")))), ids=str
)
def test_a_run_that_was_struck_ends_as_if_nothing_had_been(
    one, whole, recipes, tiny_model_folder, tmp_path
):
    expected = whole(one.script)
    said = strike(one, recipes[one.script], tmp_path / "run", tiny_model_folder, len(expected))
    assert comparable(tmp_path / "run") == expected
    if one.number in ASKS and one.at == TRAINER and "Stopped by" in said:
        assert said.count("Stopped by") == 1
        assert "--resume_from_checkpoint auto" in said
