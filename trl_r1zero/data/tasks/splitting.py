"""Generated examples in two disjoint splits, by a stable hash of the question.

The hash alone decides the split of a question, so no training question of *any* seed can be a
validation question of any other.
"""

import hashlib
import random
from collections.abc import Callable, Iterator

from trl_r1zero.data.tasks.base import Example

__all__ = ["distinct_examples", "split_of_question"]

VALIDATION_TENTHS = 1
ATTEMPTS_PER_EXAMPLE = 1000


def split_of_question(question: str) -> str:
    """Returns `validation` for a tenth of all questions and `train` for the rest.

    sha256, because Python's own `hash` of a string differs from process to process.
    """
    digest = hashlib.sha256(question.encode("utf-8")).digest()
    tenth = int.from_bytes(digest[:8], "big") % 10
    return "validation" if tenth < VALIDATION_TENTHS else "train"


def distinct_examples(
    make: Callable[[random.Random], Example], name: str, seed: int, split: str, count: int
) -> Iterator[Example]:
    """Yields `count` examples of `split` with distinct questions, drawn by `make`.

    The stream depends on (name, seed, split) only, so a longer one begins with the shorter one.

    Raises:
        ValueError: so few distinct questions exist that 1,000 draws in a row brought no new one.
    """
    rng = random.Random(f"{name}/{seed}/{split}")
    seen: set[str] = set()
    while len(seen) < count:
        for _ in range(ATTEMPTS_PER_EXAMPLE):
            example = make(rng)
            if example.question not in seen and split_of_question(example.question) == split:
                break
        else:
            raise ValueError(
                f"task {name!r}: found only {len(seen)} distinct questions for split {split!r}, "
                f"expected {count}; ask for fewer, or widen the range of numbers"
            )
        seen.add(example.question)
        yield example
