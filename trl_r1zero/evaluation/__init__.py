"""Evaluation: sample, grade and write; metrics with error bars; tables of generations."""

from .evaluate import Evaluation, evaluate, graded_completion
from .generations import log_generations, write_generations
from .metrics import GradedCompletion, mean, standard_error, summarize
from .report import results_table, write_evaluation_report
from .summary import CATEGORIES, pass_at_k, summarize_evaluation
from .vllm import VLLMEvaluation, evaluate_vllm

__all__ = [
    "CATEGORIES",
    "Evaluation",
    "GradedCompletion",
    "VLLMEvaluation",
    "evaluate",
    "evaluate_vllm",
    "graded_completion",
    "log_generations",
    "mean",
    "pass_at_k",
    "results_table",
    "standard_error",
    "summarize",
    "summarize_evaluation",
    "write_evaluation_report",
    "write_generations",
]
