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

__all__, __getattr__ = lazy_names(
    __name__,
    {
        "summary": "CATEGORIES pass_at_k summarize_evaluation",
        "sample_and_grade": "Evaluation evaluate graded_completion",
        "metrics": "GradedCompletion mean standard_error summarize",
        "vllm": "VLLMEvaluation evaluate_vllm",
        "generations": "log_generations write_generations",
        "report": "results_table write_evaluation_report",
    },
)
