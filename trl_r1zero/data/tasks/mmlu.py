"""MMLU (Hendrycks et al. 2021, arXiv:2009.03300): questions with four options on 57 subjects."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from trl_r1zero.common.naming import unknown_name_message
from trl_r1zero.data.files import Row, describe, read_csv
from trl_r1zero.data.tasks.base import Example, Rewards, RowTask
from trl_r1zero.rewards import mmlu_reward_fn

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
class MmluTask(RowTask):
    """Questions in the words of the handout; the answer is a letter, "A" to "D".

    A source is also the published folder, with `dev/*_dev.csv`, `val/*_val.csv` and
    `test/*_test.csv`, subject by subject, or one of these files. Rows of JSON lines or of the Hub
    have `question`, `subject`, `choices` (four texts) and `answer` (0 to 3).

    The ground truth is the `mmlu_example` of `parse_mmlu_response`, `{"answer": "B", "options":
    [four texts]}`. The metadata has the `subject`, such as `abstract_algebra`.
    """

    subject: str | None = None  # only this one
    # Only the first so many of each subject, for a quick look at all of them.
    num_per_subject: int | None = None

    name = "mmlu"
    default_prompt = "zero_shot"
    default_source = "cais/mmlu@all"
    eval_split = "test"
    rewards: ClassVar[Rewards] = {"text": mmlu_reward_fn}

    def __post_init__(self) -> None:
        if self.num_per_subject is not None:
            self._check_at_least(num_per_subject=1)

    def examples(self, source: str | None, split: str) -> Iterator[Example]:
        seen: Counter[str] = Counter()
        for example in super().examples(source, split):
            subject = example.metadata["subject"]
            seen[subject] += 1
            enough = self.num_per_subject is not None and seen[subject] > self.num_per_subject
            if self.subject in (None, subject) and not enough:
                yield example
        if self.subject is not None and self.subject not in seen:
            raise ValueError(
                f"task {self.name!r}: " + unknown_name_message("subject", self.subject, seen)
            )

    def rows(self, source: str | None, split: str) -> Iterator[Row]:
        files = _csv_files(source, split) if source else []
        return chain.from_iterable(map(_csv_rows, files)) if files else super().rows(source, split)

    def example(self, row: Row) -> Example:
        row = _as_on_the_hub(row) if set(COLUMNS) <= row.fields.keys() else row
        choices: Any = row.fields.get("choices")
        four = "a list of four texts"
        if not isinstance(choices, list) or len(choices) != len(LETTERS):
            raise row.error("choices", describe(choices), four)
        for choice in choices:
            if not isinstance(choice, str) or not choice.strip():
                raise row.error("choices", f"{describe(choice)} in it", four)
        answer: Any = row.fields.get("answer")
        if type(answer) is not int or answer not in range(len(LETTERS)):
            raise row.error("answer", describe(answer), "the number of the right choice, 0 to 3")
        subject = row.text("subject")
        question = QUESTION.format(
            subject=subject.replace("_", " "),
            question=row.text("question"),
            **dict(zip(LETTERS, choices, strict=True)),
        )
        truth = {"answer": LETTERS[answer], "options": choices}
        return Example(question, truth, {"subject": subject})


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


def _csv_rows(path: Path) -> Iterator[Row]:
    """Yields the records of `abstract_algebra_test.csv`, with their subject."""
    subject, _, ending = path.stem.rpartition("_")
    if not subject or ending not in ("dev", "val", "test"):
        subject = path.stem
    for row in read_csv(path, columns=COLUMNS):
        yield Row(row.where, {**row.fields, "subject": subject})


def _as_on_the_hub(row: Row) -> Row:
    """A record of a CSV file with the fields of a row of the Hub."""
    letter = row.text("answer")
    if letter not in tuple(LETTERS):
        do = "put the letter into the last column"
        raise row.error("answer", repr(letter), "A, B, C or D", do)
    choices = [row.text(name) for name in LETTERS]
    return Row(row.where, {**row.fields, "choices": choices, "answer": LETTERS.index(letter)})
