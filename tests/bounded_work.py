"""A bound on what a call does, which says the same on every machine, where a clock would not."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

MAX_CALLS = 1_000_000  # less than a second of work
MAX_SECONDS = 20.0


@contextmanager
def bounded_work() -> Iterator[None]:
    """Fail if the block makes more than MAX_CALLS calls, of Python functions and of built-in ones.

    A built-in one, such as a search for a regular expression, is one call however long it takes.
    That is what MAX_SECONDS of this thread's processor time are for: far more than a busy machine
    or a garbage collection adds to the milliseconds that a reward takes, and far less than what
    grows with the square of a long text.
    """
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    start = time.thread_time()
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)
    assert calls <= MAX_CALLS
    assert time.thread_time() - start < MAX_SECONDS
