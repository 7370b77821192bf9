"""MMLU (Hendrycks et al. 2021, arXiv:2009.03300): questions with four options on 57 subjects."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from trl_r1zero.data.csv_files import read_csv
from trl_r1zero.data.jsonl import Row
from trl_r1zero.data.sources import read_source
from trl_r1zero.data.tasks.base import Example, RewardFn, Task, take
from trl_r1zero.naming import unknown_name_message
from trl_r1zero.rewards import mmlu_reward_fn

__all__ = ["MmluTask"]

LETTERS = "ABCD"
# The columns of the published CSV files, which have no header.
COLUMNS = ("question", *LETTERS, "answer")
# The published folder calls this split otherwise than the Hub.
SPLIT_FOLDERS = {"validation": "val"}
QUESTION = (
    "Answer the following multiple choice question about {subject}. Respond with a single sentence "
    'of the form "The correct answer is _", filling the blank with the letter corresponding to the '
    "correct answer (i.e., A, B, C or D).\n\n"
    "Question: {question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\nAnswer:"
)


@dataclass(frozen=True)
class MmluTask(Task):
    """Questions in the words of the handout; the answer is a letter, "A" to "D".

    The ground truth is the `mmlu_example` of `parse_mmlu_response`, `{"answer": "B", "options":
    [four texts]}`. The metadata has the `subject`, such as `abstract_algebra`.

    Attributes:
        subject: only this one.
        num_per_subject: only the first so many of each subject, for a quick look at all of them.
    """

    subject: str | None = None
    num_per_subject: int | None = None

    name: ClassVar[str] = "mmlu"
    default_prompt: ClassVar[str] = "zero_shot"
    default_source: ClassVar[str] = "cais/mmlu@all"
    eval_split: ClassVar[str] = "test"
    rewards: ClassVar[Mapping[str, RewardFn | None]] = {"text": mmlu_reward_fn}

    def __post_init__(self) -> None:
        if self.num_per_subject is not None and self.num_per_subject < 1:
            raise ValueError(
                f"task {self.name!r}: num_per_subject: got {self.num_per_subject}, expected at "
                "least 1, or None for all"
            )

    def load(
        self, source: str | None = None, split: str = "train", limit: int | None = None
    ) -> list[Example]:
        """Returns the questions of `source` (None: `cais/mmlu@all` on the Hub); see `Task.load`.

        A source is also the published folder, with `dev/*_dev.csv`, `val/*_val.csv` and
        `test/*_test.csv`, subject by subject, or one of these files. Rows of JSON lines or of the
        Hub have `question`, `subject`, `choices` (four texts) and `answer` (0 to 3).
        """
        return take(self._of_subjects(_examples(source or self.default_source, split)), limit)

    def _of_subjects(self, examples: Iterator[Example]) -> Iterator[Example]:
        seen: Counter[str] = Counter()
        for example in examples:
            subject = example.metadata["subject"]
            seen[subject] += 1
            enough = self.num_per_subject is not None and seen[subject] > self.num_per_subject
            if self.subject in (None, subject) and not enough:
                yield example
        if self.subject is not None and self.subject not in seen:
            raise ValueError(
                f"task {self.name!r}: " + unknown_name_message("subject", self.subject, seen)
            )


def _examples(source: str, split: str) -> Iterator[Example]:
    files = _csv_files(source, split)
    if files:
        return (_csv_example(row, _subject(path)) for path in files for row in _rows(path))
    return map(_example, read_source(source, split))


def _rows(path: Path) -> Iterator[Row]:
    return read_csv(path, columns=COLUMNS)


def _csv_files(source: str, split: str) -> list[Path]:
    """The CSV files of a split, or none if the source is no such folder and no such file."""
    path = Path(source).expanduser()
    if path.is_file():
        return [path] if path.suffix == ".csv" else []
    name = SPLIT_FOLDERS.get(split, split)
    files = sorted((path / name).glob(f"*_{name}.csv"))
    if not files and any(path.glob("*/*.csv")):
        found = sorted({file.parent.name for file in path.glob("*/*.csv")})
        raise FileNotFoundError(
            f"folder {path} has no {name}/*_{name}.csv for the split {split!r}; it has CSV files "
            f"in: {', '.join(found)}. Give another split, or another folder"
        )
    return files


def _subject(path: Path) -> str:
    """`abstract_algebra` of `abstract_algebra_test.csv`."""
    subject, _, ending = path.stem.rpartition("_")
    return subject if subject and ending in ("dev", "val", "test") else path.stem


def _csv_example(row: Row, subject: str) -> Example:
    letter = row.text("answer")
    if letter not in tuple(LETTERS):
        raise row.error(
            "answer", repr(letter), "A, B, C or D", "put the letter into the last column"
        )
    return _build(row, subject, [row.text(letter) for letter in LETTERS], letter)


def _example(row: Row) -> Example:
    choices: Any = row.fields.get("choices")
    if not isinstance(choices, list) or len(choices) != len(LETTERS):
        raise row.error("choices", f"{choices!r:.80}", "a list of four texts", "correct the row")
    for choice in choices:
        if not isinstance(choice, str) or not choice.strip():
            raise row.error("choices", f"{choice!r:.80} in it", "four texts", "correct the row")
    answer: Any = row.fields.get("answer")
    if type(answer) is not int or answer not in range(len(LETTERS)):
        raise row.error(
            "answer", f"{answer!r:.80}", "the number of the right choice, 0 to 3", "correct the row"
        )
    return _build(row, row.text("subject"), choices, LETTERS[answer])


def _build(row: Row, subject: str, options: list[str], letter: str) -> Example:
    question = QUESTION.format(
        subject=subject.replace("_", " "),
        question=row.text("question"),
        **dict(zip(LETTERS, options, strict=True)),
    )
    return Example(question, {"answer": letter, "options": options}, {"subject": subject})
