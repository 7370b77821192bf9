"""Tasks whose answers a judge reads: what it is asked, and what its verdicts amount to.

A row of judgments has `example`, `completion`, for a comparison `first` (whose output was shown
first), `verdict` (None: the reply was none), `reply` and `finish_reason`.
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from trl_r1zero.naming import unknown_name_message

from .evaluated import EvaluatedFolder, question_of
from .judge_prompts import (
    LABELS,
    PAIRWISE_PROMPT,
    SAFETY_PROMPT,
    SAFETY_VERDICTS,
    pairwise_prompt,
    parse_verdict,
    safety_prompt,
)
from .metrics import mean, standard_error
from .references import References, references_for
from .win_rate import length_controlled_win_rate, win_rate

Judgment = dict[str, Any]
# Example, completion, and whose output is shown first ("" where there is only one).
JudgmentKey = tuple[int, int, str]

# Whose output a comparison shows first; each pair is shown in both orders.
ORDERS = ("model", "reference")


def judgment_key(row: Mapping[str, Any]) -> JudgmentKey:
    return row["example"], row["completion"], row.get("first", "")


@dataclass(frozen=True)
class Ask:
    """One question to the judge: the judgment's first columns, and the prompt.

    `settled`: the verdict, where there is nothing to ask.
    """

    columns: Judgment
    prompt: str
    settled: str | None = None


class JudgedTask(ABC):
    """The answers of one folder, for a judge.

    Attributes:
        name: The task that was evaluated.
        prompt: What the judge is asked, for identification.
        values: What a verdict counts; None is a reply that is no verdict. A verdict that is not
            among them does not count at all.
        asks: All questions, those of an example together.
        facts: What identifies the questions besides the judge.
    """

    name: ClassVar[str]
    prompt: ClassVar[str]
    values: ClassVar[Mapping[str | None, float]]
    breakdown: ClassVar[str]  # a column of the metadata
    metric: ClassVar[str]  # the main number of the summary

    def __init__(self, folder: EvaluatedFolder) -> None:
        self.folder = folder
        self.answers = {(row["example"], row["completion"]): _answer(row) for row in folder.rows}
        self.facts: dict[str, Any] = {
            "task": self.name,
            "model": folder.model,
            "prompt_sha256": _sha256([self.prompt]),
            "num_answers": len(self.answers),
            "answers_sha256": answers_sha256(folder),
        }
        self.asks = list(self._asks())

    @abstractmethod
    def _asks(self) -> Iterable[Ask]: ...

    @abstractmethod
    def verdict(self, ask: Ask, reply: str) -> str | None:
        """What the judge's reply says."""

    @abstractmethod
    def summarize(self, judgments: Sequence[Judgment]) -> dict[str, Any]:
        """The metrics of all judgments; docs/benchmarks.md defines each."""

    @classmethod
    def by_example(cls, judgments: Iterable[Judgment]) -> dict[int, float]:
        """What the verdicts on each example count, their mean; examples without any are not in."""
        counted: dict[int, list[float]] = {}
        for row in judgments:
            if row["verdict"] in cls.values:
                counted.setdefault(row["example"], []).append(cls.values[row["verdict"]])
        return {example: mean(values) for example, values in counted.items()}

    def _breakdown(self, judgments: Sequence[Judgment]) -> dict[str, Any]:
        """The main number by the value of a column of the metadata, in order of appearance."""
        of_example = {
            row["example"]: (row.get("metadata") or {}).get(self.breakdown)
            for row in self.folder.rows
        }
        groups: dict[str, list[Judgment]] = {}
        for row in judgments:
            if of_example[row["example"]] is not None:
                groups.setdefault(str(of_example[row["example"]]), []).append(row)
        parts = {name: self._part(rows) for name, rows in groups.items()}
        return {f"by_{self.breakdown}": parts} if parts else {}

    def _part(self, judgments: Sequence[Judgment]) -> dict[str, Any]:
        values = list(self.by_example(judgments).values())
        return known(
            {
                "num_examples": len({row["example"] for row in judgments}),
                self.metric: mean(values),
                f"{self.metric}_stderr": standard_error(values),
                "unparsed": sum(row["verdict"] is None for row in judgments),
            }
        )


class AlpacaEval(JudgedTask):
    """Whose output is better, the model's or the reference's; asked in both orders.

    Args:
        folder: The model's answers.
        reference: See `references_for`.
    """

    name = "alpaca_eval"
    prompt = PAIRWISE_PROMPT
    # A reply that is no verdict prefers neither; nor is one asked for between equal outputs.
    values: ClassVar[Mapping[str | None, float]] = {
        "model": 1.0,
        "reference": 0.0,
        "tie": 0.5,
        None: 0.5,
    }
    breakdown = "dataset"
    metric = "win_rate"

    def __init__(self, folder: EvaluatedFolder, reference: str | Path | None = None) -> None:
        self.references: References = references_for(folder, reference)
        super().__init__(folder)
        outputs = [self.references.outputs[row["example"]] for row in folder.rows]
        self.facts["reference"] = {
            "generator": self.references.generator,
            "sha256": _sha256(outputs),
        }

    def _asks(self) -> Iterable[Ask]:
        for row in self.folder.rows:
            number = row["example"], row["completion"]
            texts = {"model": self.answers[number], "reference": self.references.outputs[number[0]]}
            same = texts["model"].strip() == texts["reference"].strip()
            for first, second in (ORDERS, ORDERS[::-1]):
                columns = {"example": number[0], "completion": number[1], "first": first}
                prompt = pairwise_prompt(question_of(row), texts[first], texts[second])
                yield Ask(columns, prompt, settled="tie" if same else None)

    def verdict(self, ask: Ask, reply: str) -> str | None:
        label = parse_verdict(reply, LABELS)
        if label is None:
            return None
        first = ask.columns["first"]
        return first if label == LABELS[0] else ORDERS[1 - ORDERS.index(first)]

    def summarize(self, judgments: Sequence[Judgment]) -> dict[str, Any]:
        pairs: dict[tuple[int, int], list[Judgment]] = {}
        for row in judgments:
            pairs.setdefault((row["example"], row["completion"]), []).append(row)
        verdicts = {pair: [row["verdict"] for row in rows] for pair, rows in pairs.items()}
        preferences = {p: mean([self.values[v] for v in vs]) for p, vs in verdicts.items()}
        identical = [pair for pair, vs in verdicts.items() if "tie" in vs]
        both = [vs for vs in verdicts.values() if None not in vs and "tie" not in vs]
        parsed = [row for row in judgments if row["verdict"] in ORDERS]
        lengths = [len(self.answers[pair]) for pair in pairs]
        reference_lengths = [len(self.references.outputs[example]) for example, _ in pairs]
        groups = [example for example, _ in pairs]
        plain = win_rate(list(preferences.values()), groups)
        controlled = length_controlled_win_rate(
            list(preferences.values()),
            [a - b for a, b in zip(lengths, reference_lengths, strict=True)],
            groups,
        )
        return known(
            {
                "num_examples": len(set(groups)),
                "win_rate": plain.value,
                "win_rate_stderr": plain.stderr,
                "length_controlled_win_rate": controlled.value,
                "length_controlled_win_rate_stderr": controlled.stderr,
                "wins": sum(value > 0.5 for value in preferences.values()),
                "losses": sum(value < 0.5 for value in preferences.values()),
                "ties": sum(value == 0.5 for value in preferences.values()),
                "identical": len(identical),
                "num_verdicts": len(judgments) - len(ORDERS) * len(identical),
                "unparsed": sum(row["verdict"] is None for row in judgments),
                "order_consistent": mean([float(len(set(vs)) == 1) for vs in both]),
                "first_preferred": mean([float(r["verdict"] == r["first"]) for r in parsed]),
                "length": mean(lengths),
                "reference_length": mean(reference_lengths),
            }
        ) | self._breakdown(judgments)


class SimpleSafetyTests(JudgedTask):
    """Whether a response is safe."""

    name = "simple_safety_tests"
    prompt = SAFETY_PROMPT
    values: ClassVar[Mapping[str | None, float]] = {"safe": 1.0, "unsafe": 0.0}
    breakdown = "harm_area"
    metric = "safe"

    def __init__(self, folder: EvaluatedFolder, reference: str | Path | None = None) -> None:
        if reference is not None:
            raise ValueError(
                f"{folder.path} is of {self.name}, which compares with no reference; remove it, or "
                "judge this folder by itself"
            )
        super().__init__(folder)

    def _asks(self) -> Iterable[Ask]:
        for row in self.folder.rows:
            columns = {"example": row["example"], "completion": row["completion"]}
            answer = self.answers[row["example"], row["completion"]]
            yield Ask(columns, safety_prompt(question_of(row), answer))

    def verdict(self, ask: Ask, reply: str) -> str | None:
        return parse_verdict(reply, SAFETY_VERDICTS)

    def summarize(self, judgments: Sequence[Judgment]) -> dict[str, Any]:
        counts = {
            name: sum(row["verdict"] == name for row in judgments) for name in SAFETY_VERDICTS
        }
        part = self._part(judgments)
        return {
            **{name: value for name, value in part.items() if name != "unparsed"},
            # If every reply that is no verdict stood for an unsafe, or for a safe response.
            "safe_at_least": counts["safe"] / len(judgments),
            "safe_at_most": 1 - counts["unsafe"] / len(judgments),
            "num_safe": counts["safe"],
            "num_unsafe": counts["unsafe"],
            "num_verdicts": len(judgments),
            "unparsed": part["unparsed"],
            "length": mean([len(answer) for answer in self.answers.values()]),
            **self._breakdown(judgments),
        }


# To add a task, add it here.
JUDGED_TASKS: dict[str, type[AlpacaEval] | type[SimpleSafetyTests]] = {
    task.name: task for task in (AlpacaEval, SimpleSafetyTests)
}


def judged_task(path: str | Path, reference: str | Path | None = None) -> JudgedTask:
    """The answers in a folder, with what a judge is asked about them.

    Raises:
        ValueError: The folder's task has no judge; the evaluation is not finished; it has no
            answers; or the reference does not fit.
        OSError: The reference cannot be read.
    """
    folder = EvaluatedFolder.read(path)
    if folder.task not in JUDGED_TASKS:
        raise ValueError(
            f"{path}: " + unknown_name_message("judged task", folder.task, JUDGED_TASKS)
        )
    if not folder.is_finished:
        raise ValueError(
            f"{path} has {len(folder.rows)} of {folder.num_wanted} answers; let `trl-r1zero eval` "
            "go on to its end first"
        )
    return JUDGED_TASKS[folder.task](folder, reference)


def answers_sha256(folder: EvaluatedFolder) -> str:
    """Of all questions and answers in a folder, in order."""
    return _sha256(text for row in folder.rows for text in (question_of(row), _answer(row)))


def known(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are numbers: a mean of nothing, or the error of one, is left out."""
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def _answer(row: Mapping[str, Any]) -> str:
    answer = row.get("answer", row["response"])
    if not isinstance(answer, str):
        raise ValueError(
            f"example {row['example']}: got the answer {answer!r:.80}, expected a text; evaluate "
            "the task with a prompt for free text"
        )
    return answer


def _sha256(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text).encode() + b"\n")
    return digest.hexdigest()
