"""The leaderboard: its rules, runs under a time budget, and submissions that can be audited."""

from .rules import BOARDS, Board, Check, RuleBrokenError, get_board
from .submission import SubmissionError, verify

__all__ = ["BOARDS", "Board", "Check", "RuleBrokenError", "SubmissionError", "get_board", "verify"]
