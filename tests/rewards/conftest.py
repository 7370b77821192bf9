"""The labelled pairs and the hostile inputs, where they are at hand; tests that need them skip
with a reason otherwise."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parents[3] / "shared" / "grader"


def _read(name: str) -> list[dict]:
    path = _FOLDER / name
    if not path.exists():
        pytest.skip(f"{name} is not here: the labelled pairs are not part of the package")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def read_corpus() -> Callable[[str], list[dict]]:
    return _read
