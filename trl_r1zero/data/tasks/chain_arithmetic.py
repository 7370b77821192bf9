"""The embedded task: chains of additions and subtractions, `14 + 5 + 9 - 8`.

Small enough for a model of well under a million parameters on a CPU, and with something to learn:
a model that guesses at once is mostly wrong, and one that writes its steps down is mostly right.
The module also writes the texts on which the base policy is trained, honest or deliberately poor.

Every number, operator and mark is set off by spaces, in questions and in completions alike, so that
a number has the same tokens wherever it stands.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from trl_r1zero.data.files import Row
from trl_r1zero.data.tasks.base import Example, GeneratedTask, Solution

MAX_VALUE = 49
QUESTION = re.compile(r"(?:0|[1-9]\d*)(?: [+-] (?:0|[1-9]\d*))+", re.ASCII)


@dataclass(frozen=True)
class ChainArithmeticTask(GeneratedTask):
    """Chains whose running value stays in 0..49 at every step.

    A question has `min_operands` to `max_operands` numbers, uniformly. The first number is in
    0..49; each later one is in 1..`max_step`, with a sign that keeps the running value in range.
    The ground truth is the final value as a string.
    """

    # min_operands, max_operands: length of a chain.
    min_operands: int = 3
    max_operands: int = 5
    max_step: int = 9  # the largest number that is added or subtracted in one step

    name = "chain_arithmetic"
    default_prompt = "chain_arithmetic"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(min_operands=2, max_operands=self.min_operands, max_step=1)
        if self.max_step > MAX_VALUE:
            raise ValueError(
                f"task {self.name!r}: max_step: got {self.max_step}, expected at most {MAX_VALUE}"
            )

    def solutions(self, rows: Iterator[Row] | None, split: str = "train") -> Iterator[Solution]:
        """Yields the honest steps of each generated chain; see `Task.solutions`."""
        if rows is not None:
            raise ValueError(
                f"task {self.name!r}: got problems, expected traces or no source, for this task "
                "generates its problems; remove the source, or give rows of prompt and response"
            )
        for number, example in enumerate(self.load(split=split)):
            working, answer = solve_steps(example.question)
            yield Solution(example.question, working, answer, f"{self.name} {split} row {number}")

    def draw(self, rng: random.Random) -> Example:
        value = rng.randint(0, MAX_VALUE)
        question = str(value)
        operands = rng.randint(self.min_operands, self.max_operands)
        while operands > 1:
            step = rng.choice((-1, 1)) * rng.randint(1, self.max_step)
            if not 0 <= value + step <= MAX_VALUE:
                continue
            value += step
            operands -= 1
            question += f" {'+' if step > 0 else '-'} {abs(step)}"
        return Example(question, str(value))


@dataclass(frozen=True)
class TraceNoise:
    """How poor the traces of `noisy_trace` are. Probabilities; all zero gives honest traces."""

    guess: float = 0.45  # the whole working is missing, and the value is only near the right one
    step_error: float = 0.12  # a step's result is wrong, and the chain goes on from the wrong value
    bad_format: float = 0.15  # the tags are not as the reward function wants them
    # The last step is worked out once more (anew, so it may turn out otherwise).
    recheck: float = 0.12
    guess_range: int = 5  # a guess is at most this far from the right value, uniformly

    def __post_init__(self) -> None:
        for name in ("guess", "step_error", "bad_format", "recheck"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a probability, 0..1")
        if self.guess_range < 0:
            raise ValueError(f"guess_range: got {self.guess_range}, expected at least 0")


HONEST = TraceNoise(guess=0.0, step_error=0.0, bad_format=0.0, recheck=0.0)
WRONG_BY = (-10, -3, -2, -1, 1, 2, 3, 10)
STEP_SEPARATOR = " ; "
GOOD_FORMAT = " </think> <answer> {value} </answer>"
BAD_FORMATS = (" </think> {value}", " <answer> {value} </answer>", " </think> <answer> {value}")


def parse_chain(question: str) -> tuple[int, list[int]]:
    """Returns the first number and the signed steps: `14 + 5 - 8` -> `(14, [5, -8])`."""
    if QUESTION.fullmatch(question) is None:
        raise ValueError(
            f"got {question!r}, expected a chain such as '14 + 5 - 8', one space around each sign"
        )
    first, *steps = re.sub(r"([+-]) ", r"\1", question).split(" ")
    return int(first), [int(step) for step in steps]


def solve_trace(question: str) -> str:
    """Returns the honest completion of the `chain_arithmetic` prompt, without end-of-text token.

    `14 + 5 - 8` -> ` 14 + 5 = 19 ; 19 - 8 = 11 </think> <answer> 11 </answer>`
    """
    working, answer = solve_steps(question)
    return f" {working}" + GOOD_FORMAT.format(value=answer)


def solve_steps(question: str) -> tuple[str, str]:
    """Returns the honest steps, and the final value: `("14 + 5 = 19 ; 19 - 8 = 11", "11")`."""
    first, steps = parse_chain(question)
    values = list(accumulate(steps, initial=first))
    lines = map(_line, values, steps, values[1:])
    return STEP_SEPARATOR.join(lines), str(values[-1])


def noisy_trace(question: str, rng: random.Random, noise: TraceNoise = TraceNoise()) -> str:
    """Returns a completion with the faults that `noise` describes, drawn from `rng`.

    All numbers stay in 0..49, in wrong steps too, so that nothing but the arithmetic is wrong.
    """
    first, steps = parse_chain(question)
    if rng.random() < noise.guess:
        right = first + sum(steps)
        low, high = max(0, right - noise.guess_range), min(MAX_VALUE, right + noise.guess_range)
        value, working = rng.randint(low, high), ""
    else:
        value, lines = first, []
        for position, step in enumerate(steps):
            before = value
            value = _result(before, steps[position:], rng, noise.step_error)
            lines.append(_line(before, step, value))
        if rng.random() < noise.recheck:
            value = _result(before, steps[-1:], rng, noise.step_error)
            lines.append(_line(before, steps[-1], value))
        working = " " + STEP_SEPARATOR.join(lines)
    formats = BAD_FORMATS if rng.random() < noise.bad_format else (GOOD_FORMAT,)
    return working + rng.choice(formats).format(value=value)


def _result(value: int, steps: list[int], rng: random.Random, step_error: float) -> int:
    """Result of `value + steps[0]`: right, or wrong such that the later steps stay in 0..49."""
    right = value + steps[0]
    if rng.random() >= step_error:
        return right
    partial_sums = [sum(steps[1:end]) for end in range(1, len(steps) + 1)]
    wrong = [
        right + error
        for error in WRONG_BY
        if all(0 <= right + error + partial <= MAX_VALUE for partial in partial_sums)
    ]
    return rng.choice(wrong) if wrong else right


def _line(before: int, step: int, result: int) -> str:
    return f"{before} {'+' if step > 0 else '-'} {abs(step)} = {result}"
