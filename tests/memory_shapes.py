"""Configs of models that tests of memory are about, as the benchmark has them; no weights."""

import copy
import runpy

from tiny_models import REPOSITORY
from transformers import LlamaConfig, Qwen2Config

_MODELS = runpy.run_path(str(REPOSITORY / "benchmarks" / "memory_model.py"))["MODELS"]


def qwen_math_config() -> Qwen2Config:
    """Qwen2.5-Math-1.5B."""
    return copy.deepcopy(_MODELS["qwen2.5-math-1.5b"])


def smollm_config() -> LlamaConfig:
    """SmolLM2-135M."""
    return copy.deepcopy(_MODELS["smollm2"])
