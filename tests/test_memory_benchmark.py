"""The memory model against the peak of real training steps, in a child process."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "memory_model.py"


@pytest.fixture(scope="module")
def memory_model():
    spec = importlib.util.spec_from_file_location("memory_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["memory_model"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        {"model": "embedded", "dtype": "float32", "rows": 64, "length": 256},
        {"model": "smollm2", "dtype": "bfloat16", "rows": 2, "length": 256},
    ],
    ids=lambda case: f"{case['model']}-{case['dtype']}",
)
def test_a_real_step_takes_what_was_predicted(memory_model, case):
    report = memory_model.report(memory_model.Case(**case))
    assert 0.8 < report["ratio"] < 1.2, report
