"""A folder of an evaluation, read to judge or compare what is in it; and reference outputs."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trl_r1zero.data.files import read_json

from .files import (
    EVALUATION_FILE,
    RESULT_COLUMNS,
    RESULTS_FILE,
    ResultsFolderError,
    parse_rows,
)

# A question and how often it came before: data sets have some questions twice.
QuestionKey = tuple[str, int]

_NAMED_IN_ERRORS = 5


@dataclass(frozen=True)
class EvaluatedFolder:
    """What `trl-r1zero eval` wrote: what evaluation.json holds, and the rows in order."""

    path: Path
    facts: dict[str, Any]
    rows: list[dict[str, Any]]

    @classmethod
    def read(cls, path: str | Path) -> "EvaluatedFolder":
        """Read a folder; a last line that is not whole is left out. ResultsFolderError if it is no
        folder of an evaluation, or a line of it is no row."""
        path = Path(path)
        if absent := [n for n in (EVALUATION_FILE, RESULTS_FILE) if not (path / n).is_file()]:
            raise ResultsFolderError(
                f"{path} has no {' and no '.join(absent)}; give a folder that `trl-r1zero eval` "
                "wrote"
            )
        facts = json.loads((path / EVALUATION_FILE).read_text(encoding="utf-8"))
        content = (path / RESULTS_FILE).read_bytes()
        whole = content[: content.rfind(b"\n") + 1].splitlines()
        rows = parse_rows(whole, path / RESULTS_FILE, "row of an evaluation", RESULT_COLUMNS)
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


# Reference outputs: what the answers to AlpacaEval's instructions are compared with.


@dataclass(frozen=True)
class References:
    """What wrote them, the texts by example number, and whether they came with the data."""

    generator: str
    outputs: dict[int, str]
    is_of_the_data: bool = False


def references_for(folder: EvaluatedFolder, source: str | Path | None = None) -> References:
    """The reference outputs for a folder's instructions.

    Args:
        folder: Whose answers are judged.
        source: Another folder of an evaluation (of several completions the first counts), or a
            file in AlpacaEval's format: a JSON array, or JSON lines, of `instruction`, `output`
            and `generator`. Outputs are matched by instruction; further ones do not matter. None:
            the outputs that the data has.

    Raises:
        ValueError: The source is neither, a row is not as it should be, or instructions have no
            reference output.
        OSError: The source cannot be read.
    """
    if source is None:
        return _of_the_data(folder)
    path = Path(source)
    outputs, generator = _of_folder(path) if path.is_dir() else _of_file(path)
    keys = folder.question_keys
    if missing := [key[0] for key in keys.values() if key not in outputs]:
        named = "".join(f"\n  {text!r:.100}" for text in missing[:_NAMED_IN_ERRORS])
        more = len(missing) - _NAMED_IN_ERRORS
        raise ValueError(
            f"{path} has no output for {len(missing)} of the {len(keys)} instructions in "
            f"{folder.path}:{named}" + (f"\n  and {more} more" if more > 0 else "") + "\nGive "
            "reference outputs for all of them."
        )
    return References(generator, {example: outputs[key] for example, key in keys.items()})


def _of_the_data(folder: EvaluatedFolder) -> References:
    outputs: dict[int, Any] = {row["example"]: row.get("ground_truth") for row in folder.rows}
    for example, text in outputs.items():
        if not isinstance(text, str):
            raise ValueError(
                f"{folder.path}: example {example} has no reference output as its ground_truth, "
                f"got {text!r:.80}; give reference outputs of your own (reference)"
            )
    generators = [(row.get("metadata") or {}).get("generator") for row in folder.rows]
    return References(_one_name(generators, "the data's reference"), outputs, is_of_the_data=True)


def _of_folder(path: Path) -> tuple[dict[QuestionKey, str], str]:
    folder = EvaluatedFolder.read(path)
    outputs: dict[QuestionKey, str] = {}
    for row in folder.rows:
        outputs.setdefault(folder.question_keys[row["example"]], str(row.get("answer") or ""))
    return outputs, folder.model


def _of_file(path: Path) -> tuple[dict[QuestionKey, str], str]:
    outputs: dict[QuestionKey, str] = {}
    seen: Counter[str] = Counter()
    generators = []
    for row in read_json(path):
        instruction, output = row.text("instruction"), row.fields.get("output")
        if not isinstance(output, str):  # it may be empty
            raise row.error("output", f"{output!r:.80}", "a string", "correct or remove the row")
        outputs[instruction, seen[instruction]] = output
        seen[instruction] += 1
        generators.append(row.optional_text("generator"))
    return outputs, _one_name(generators, path.stem)


def _one_name(generators: list[str | None], otherwise: str) -> str:
    return " and ".join(list(dict.fromkeys(filter(None, generators)))[:3]) or otherwise
