"""Evaluation: sample, grade and write; metrics with error bars; tables of generations."""

from typing import TYPE_CHECKING

from trl_r1zero.common.lazy import lazy_names

if TYPE_CHECKING:
    from .generations import log_generations, write_generations
    from .metrics import GradedCompletion, mean, standard_error, summarize
    from .report import results_table, write_evaluation_report
    from .sample_and_grade import Evaluation, evaluate, graded_completion
    from .summary import CATEGORIES, pass_at_k, summarize_evaluation
    from .vllm import VLLMEvaluation, evaluate_vllm

# Public name -> the module that defines it.
_EXPORTS = {
    "CATEGORIES": "summary",
    "Evaluation": "sample_and_grade",
    "GradedCompletion": "metrics",
    "VLLMEvaluation": "vllm",
    "evaluate": "sample_and_grade",
    "evaluate_vllm": "vllm",
    "graded_completion": "sample_and_grade",
    "log_generations": "generations",
    "mean": "metrics",
    "pass_at_k": "summary",
    "results_table": "report",
    "standard_error": "metrics",
    "summarize": "metrics",
    "summarize_evaluation": "summary",
    "write_evaluation_report": "report",
    "write_generations": "generations",
}
__all__ = [*_EXPORTS]
__getattr__ = lazy_names(__name__, _EXPORTS)
