"""Whether an answer equals a ground truth, and which rule decided: M (`mathd`) first, then S
(`symbolic`)."""

from typing import NamedTuple

from .bounds import LIMITS, count_bound
from .mathd import mathd_equal
from .symbolic import symbolic_verdict

__all__ = ["Verdict", "answer_verdict"]


class Verdict(NamedTuple):
    """Right or wrong, and the name of the rule that decided."""

    right: bool
    rule: str


def answer_verdict(answer: str, ground_truth: str) -> Verdict:
    """Verdict for one answer and one ground truth, both already extracted."""
    if answer == ground_truth:
        return Verdict(True, "identical")
    if max(len(answer), len(ground_truth)) > LIMITS["answer_chars"]:
        count_bound("answer_chars")
        return Verdict(False, "bound:answer_chars")
    if mathd_equal(answer, ground_truth):
        return Verdict(True, "string_equal")
    return Verdict(*symbolic_verdict(answer, ground_truth))
