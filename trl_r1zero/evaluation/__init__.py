"""Evaluation: metrics with error bars, and tables of generations."""

from .generations import log_generations, write_generations
from .metrics import GradedCompletion, mean, standard_error, summarize

__all__ = [
    "GradedCompletion",
    "log_generations",
    "mean",
    "standard_error",
    "summarize",
    "write_generations",
]
