"""Grading: what a completion is worth, by a reward function, in this process or in workers."""

from .grader import Grade, Grader, RewardFn, keep_replies

__all__ = ["Grade", "Grader", "RewardFn", "keep_replies"]
