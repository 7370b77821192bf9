"""A folder of an evaluation, read by those who judge or compare what is in it."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .results_folder import EVALUATION_FILE, RESULTS_FILE, ResultsFolderError, parse_rows

# A question and how often it came before: data sets have some questions twice.
QuestionKey = tuple[str, int]


@dataclass(frozen=True)
class EvaluatedFolder:
    """What `trl-r1zero eval` wrote.

    Attributes:
        path: The folder.
        facts: What its evaluation.json holds.
        rows: The rows of its results.jsonl, in the order of the examples and their completions.
    """

    path: Path
    facts: dict[str, Any]
    rows: list[dict[str, Any]]

    @classmethod
    def read(cls, path: str | Path) -> "EvaluatedFolder":
        """Read a folder; a last line that is not whole is left out.

        Raises:
            ResultsFolderError: It is no folder of an evaluation, or a line of it is no row.
        """
        path = Path(path)
        absent = [n for n in (EVALUATION_FILE, RESULTS_FILE) if not (path / n).is_file()]
        if absent:
            raise ResultsFolderError(
                f"{path} has no {' and no '.join(absent)}; give a folder that `trl-r1zero eval` "
                "wrote"
            )
        facts = json.loads((path / EVALUATION_FILE).read_text(encoding="utf-8"))
        content = (path / RESULTS_FILE).read_bytes()
        whole = content[: content.rfind(b"\n") + 1].splitlines()
        keyed = parse_rows(whole, path / RESULTS_FILE, _keyed, "row of an evaluation")
        rows = dict(reversed(keyed))  # of two rows with the same key the first counts
        return cls(path, facts, [rows[key] for key in sorted(rows)])

    def setting(self, name: str) -> str:
        return str(self.facts["settings"].get(name, "unknown"))

    @property
    def task(self) -> str:
        return self.setting("task")

    @property
    def model(self) -> str:
        return self.setting("model")

    @property
    def num_wanted(self) -> int:
        """Completions of the finished evaluation."""
        return int(self.facts["num_examples"] * self.facts["num_completions"])

    @property
    def is_finished(self) -> bool:
        return len(self.rows) == self.num_wanted

    @cached_property
    def question_keys(self) -> dict[int, QuestionKey]:
        """Number of an example -> its key, which is the same in another folder of the same data."""
        keys: dict[int, QuestionKey] = {}
        seen: Counter[str] = Counter()
        for example, text in {row["example"]: question_of(row) for row in self.rows}.items():
            keys[example] = (text, seen[text])
            seen[text] += 1
        return keys


def question_of(row: Mapping[str, Any]) -> str:
    """The question of a row; its prompt, where the data has no question."""
    return str(row.get("question") or row["prompt"])


def _keyed(row: dict[str, Any]) -> tuple[tuple[int, int], dict[str, Any]]:
    return (row["example"], row["completion"]), row
