"""What a task is: where its examples come from, how a response is graded, and its default prompt.

A task owns all three, so training and evaluation cannot disagree about any of them. Which reward
function grades a response follows from the prompt alone: a prompt says where its answer stands
(`answer_format`), and `rewards` maps that to a function, or to None where nothing grades it.

A task that reads rows is a `RowTask`, which says how a row becomes an example; one that makes its
examples is a `GeneratedTask`, which draws them.
"""

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, ClassVar

from trl_r1zero.common.naming import unknown_name_message
from trl_r1zero.data.bad_rows import BadRows, reading, usable
from trl_r1zero.data.files import Row
from trl_r1zero.data.prompts import Prompt
from trl_r1zero.data.sources import read_source
from trl_r1zero.rewards import question_only_reward_fn, r1_zero_reward_fn

RewardFn = Callable[[str, Any], dict[str, float]]
Rewards = Mapping[str, RewardFn | None]
GroundTruth = str | list[str] | dict[str, Any]

# answer_format of a prompt -> the reward function that reads it, for answers that are mathematics.
MATH_REWARDS: Rewards = {"tags": r1_zero_reward_fn, "boxed": question_only_reward_fn}
# Splits of a `GeneratedTask`.
GENERATED_SPLITS = ("train", "validation")
ATTEMPTS_PER_EXAMPLE = 1000


@dataclass(frozen=True)
class Example:
    """One question and what its answer is graded against."""

    question: str  # goes into the prompt's `{question}`
    # What the reward function takes; of a list, any element will do. A dict, where grading needs
    # more than the answer. For answers that are not graded, what they are compared with.
    ground_truth: GroundTruth
    # JSON-friendly extras such as `level`; they become columns of the rows.
    metadata: dict[str, Any] = field(default_factory=dict)
    # The place it came from ("file:line"), for messages; empty if it was generated.
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Solution:
    """One question, worked out."""

    question: str  # as of an `Example`
    working: str  # the solution in words, without what a prompt's answer format adds (tags)
    # The final answer, which is the ground truth too; of a list, any is right, and a response gives
    # the first.
    answer: str | list[str]
    where: str  # the place it came from, for messages


class Task(ABC):
    """Base of all tasks: a frozen dataclass whose fields are its settings (`task_args`)."""

    name: ClassVar[str]  # a key of `TASKS`
    default_prompt: ClassVar[str]  # a name of `PROMPTS`
    eval_split: ClassVar[str] = "validation"  # the split that an evaluation reads by default
    # answer_format of a prompt -> the function that grades responses to it; None: they are not
    # graded, but left to a judge or a person.
    rewards: ClassVar[Rewards] = MATH_REWARDS
    # The file for tools outside of this package that an evaluation writes; one row for each
    # question, see `output_row`. A JSON array, or JSON lines if it ends in `.jsonl`.
    output_file: ClassVar[str | None] = None

    @abstractmethod
    def examples(self, source: str | None, split: str) -> Iterator[Example]:
        """Yields the examples of a split; arguments as in `load`."""

    def load(
        self,
        source: str | None = None,
        split: str = "train",
        limit: int | None = None,
        on_bad_row: str | BadRows = "error",
    ) -> list[Example]:
        """Returns the examples of a split, in a fixed order.

        Args:
            source: a local file or folder or a Hub id (see `trl_r1zero.data.sources`); None for
                tasks that generate their examples, or that have a usual source.
            split: `train`, `validation`, `test` ... A source that is one file has one split, and
                this says nothing about it.
            limit: at most so many, from the start; rows after them are not read. None: all.
            on_bad_row: `error`, or `skip`: rows that cannot be used are left out and logged. See
                `reading` for a `BadRows`.

        Raises:
            ValueError: rows that cannot be used, all of them in one message; a broken file.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit: got {limit}, expected at least 1, or None for all examples")
        with reading(source or self.name, on_bad_row):
            return list(islice(self.examples(source, split), limit))

    def solutions(self, rows: Iterator[Row] | None, split: str = "train") -> Iterator[Solution]:
        """Yields the worked solutions of a split, in a fixed order; for supervised fine-tuning.

        Args:
            rows: of the source that was given; None if none was, for tasks that generate their
                examples, or that have a usual source.
            split: as in `load`, where `rows` is None.

        Raises:
            ValueError: the task has no worked solutions, or a row has none.
        """
        raise ValueError(
            f"task {self.name!r}: got {'no source' if rows is None else 'problems'}, expected "
            "traces, for this task has no worked solutions; give a source whose rows have the "
            "fields prompt and response"
        )

    def reward_fn(self, prompt: Prompt) -> RewardFn | None:
        """Returns the function `(response, ground_truth) -> {"format_reward", "answer_reward",
        "reward"}` that reads responses to this prompt, or None if they are not graded. It is a
        module-level function, so that it can be sent to other processes. A ValueError if the task
        has no use for the prompt's answer format."""
        if prompt.answer_format not in self.rewards:
            raise ValueError(
                f"task {self.name!r} with prompt {prompt.name!r}: "
                + unknown_name_message("answer_format", prompt.answer_format, self.rewards)
            )
        return self.rewards[prompt.answer_format]

    def output_row(
        self, question: str, reply: str, metadata: Mapping[str, Any], model: str
    ) -> dict[str, str]:
        """Returns a row of `output_file`, for an example and the `reply` of the model of that name
        (without what the prompt puts around it)."""
        raise NotImplementedError(f"task {self.name!r} has no output_file")

    def _check_at_least(self, **bounds: int) -> None:
        for name, bound in bounds.items():
            got = getattr(self, name)
            if got < bound:
                raise ValueError(
                    f"task {self.name!r}: {name}: got {got}, expected at least {bound}"
                )


class RowTask(Task):
    """A task that reads rows: from the source that is given, or from `default_source`, a Hub id. If
    that is None, a source must be given, and `expected_source` says which, for the message."""

    default_source: ClassVar[str | None] = None
    expected_source: ClassVar[str] = "a file of rows or a Hub id"

    @abstractmethod
    def example(self, row: Row) -> Example:
        """Returns the question and the ground truth of a row."""

    def rows(self, source: str | None, split: str) -> Iterator[Row]:
        """Returns the rows of a split; None for the usual source."""
        source = source or self.default_source
        if source is None:
            raise ValueError(f"task {self.name!r}: got no source, expected {self.expected_source}")
        return read_source(source, split)

    def examples(self, source: str | None, split: str) -> Iterator[Example]:
        rows = self.rows(source, split)
        return usable(lambda row: replace(self.example(row), where=row.where), rows)


@dataclass(frozen=True)
class GeneratedTask(Task):
    """A task that makes its examples from its settings: no source, two disjoint splits.

    A stable hash of the question alone decides its split, so no training question of *any* seed can
    be a validation question of any other. A longer stream of a split begins with a shorter one.
    """

    # num_train, num_validation: sizes of the two splits, all questions distinct.
    num_train: int = 8192
    num_validation: int = 512
    seed: int = 0  # another one gives other questions

    def __post_init__(self) -> None:
        self._check_at_least(num_train=1, num_validation=1)

    @abstractmethod
    def draw(self, rng: random.Random) -> Example:
        """Returns a random example of either split."""

    def examples(self, source: str | None, split: str) -> Iterator[Example]:
        """Yields the generated examples of `train` or `validation`; the same ones every time."""
        if source is not None:
            raise ValueError(
                f"task {self.name!r}: got source {source!r}, expected none, for this task "
                "generates its examples; remove the source"
            )
        if split not in GENERATED_SPLITS:
            raise ValueError(
                f"task {self.name!r}: " + unknown_name_message("split", split, GENERATED_SPLITS)
            )
        rng = random.Random(f"{self.name}/{self.seed}/{split}")
        wanted = self.num_train if split == "train" else self.num_validation
        seen: set[str] = set()
        while len(seen) < wanted:
            for _ in range(ATTEMPTS_PER_EXAMPLE):
                example = self.draw(rng)
                if example.question not in seen and split_of_question(example.question) == split:
                    break
            else:
                raise ValueError(
                    f"task {self.name!r}: found only {len(seen)} distinct questions for split "
                    f"{split!r}, expected {wanted}; ask for fewer, or widen the range of numbers"
                )
            seen.add(example.question)
            yield example


def split_of_question(question: str) -> str:
    """Returns `validation` for a tenth of all generated questions and `train` for the rest."""
    # Python's own `hash` of a string differs from process to process.
    digest = hashlib.sha256(question.encode("utf-8")).digest()
    return "validation" if int.from_bytes(digest[:8], "big") % 10 == 0 else "train"
