"""L, the last stage of the reference, which only `fast=False` asks for: math-verify on both sides.

math-verify parses with regular expressions and sympy and bounds itself with alarm signals, which
neither work in a thread nor interrupt long operations in C. It therefore runs in a worker process
under a wall-clock deadline and a memory limit. It is imported in the worker only.
"""

import itertools
import os
import threading

from .bounds import count_bound
from .pool import RewardPool, in_worker
from .symbolic import Verdict

DEADLINE_S = 5.0
MEMORY_MB = 1024
_REPETITION_CHECKED_FROM = 128
_REPETITION_LIMIT = 0.2
_MAX_CHARS = 20_000

_pool: RewardPool | None = None
_pool_owner = 0
_pool_lock = threading.Lock()


def latex_verdict(answer: str, ground_truth: str, otherwise: Verdict) -> Verdict:
    """Right if math-verify calls the two equal; else `otherwise`, the verdict of the stages
    before."""
    if max(len(answer), len(ground_truth)) > _MAX_CHARS:
        count_bound("answer_chars")
        return otherwise
    if is_repetitive(answer) or is_repetitive(ground_truth):
        return otherwise
    if in_worker():
        return Verdict(True, "latex_equal") if latex_equal(answer, ground_truth) else otherwise
    result = _shared_pool().map([(answer, ground_truth)])[0]
    if result.failure:
        return Verdict(False, "worker_failed")
    return Verdict(True, "latex_equal") if result.value else otherwise


def latex_equal(answer: str, ground_truth: str) -> bool:
    """math-verify's own verdict, with the settings of the reference. Runs in the main thread of a
    worker process."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    targets = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    sides = [
        parse(
            side if "$" in side else f"${side}$",
            extraction_config=targets,
            fallback_mode="no_fallback",
            extraction_mode="any_match",
            parsing_timeout=1,
        )
        for side in (ground_truth, answer)
    ]
    return bool(verify(sides[0], sides[1], timeout_seconds=1))


def is_repetitive(text: str) -> bool:
    """Whether a text of more than 128 characters repeats itself.

    With c the sum of the longest common prefixes of neighbours in the sorted list of suffixes and
    n the length: 2 c / (n (n + 1)) > 0.2.
    """
    n = len(text)
    if n <= _REPETITION_CHECKED_FROM:
        return False
    rank, order = _suffix_array(text)
    total = 0
    common = 0
    # Kasai et al. 2001: walking the suffixes in text order, the common prefix shrinks by at most
    # one per step.
    for start in range(n):
        if rank[start] + 1 == n:
            common = 0
            continue
        neighbour = order[rank[start] + 1]
        while (
            start + common < n
            and neighbour + common < n
            and text[start + common] == text[neighbour + common]
        ):
            common += 1
        total += common
        common = max(0, common - 1)
    return 2 * total > _REPETITION_LIMIT * n * (n + 1)


def _suffix_array(text: str) -> tuple[list[int], list[int]]:
    """Rank of each suffix and the suffixes in order, by doubling (Manber and Myers 1993)."""
    n = len(text)
    rank = [ord(char) for char in text]
    order = list(range(n))
    width = 1
    while True:
        keys = [(rank[i], rank[i + width] if i + width < n else -1) for i in range(n)]
        order.sort(key=keys.__getitem__)
        new_rank = [0] * n
        for previous, current in itertools.pairwise(order):
            new_rank[current] = new_rank[previous] + (keys[current] != keys[previous])
        rank = new_rank
        if rank[order[-1]] == n - 1:
            return rank, order
        width *= 2


def _warm_up() -> None:
    # The first call builds parsers and caches; it must not count against the deadline of a row.
    latex_equal("\\frac{1}{2}", "0.5")


def _shared_pool() -> RewardPool:
    """One worker for this process; a process forked from this one gets its own."""
    global _pool, _pool_owner  # noqa: PLW0603
    with _pool_lock:
        if _pool is None or _pool_owner != os.getpid():
            _pool = RewardPool(
                latex_equal, workers=1, deadline_s=DEADLINE_S, memory_mb=MEMORY_MB, warm_up=_warm_up
            )
            _pool_owner = os.getpid()
        return _pool


def close_latex_pool() -> None:
    """Stop the worker of `fast=False`, if there is one; the next call starts another."""
    global _pool  # noqa: PLW0603
    with _pool_lock:
        if _pool is not None and _pool_owner == os.getpid():
            _pool.close()
        _pool = None
