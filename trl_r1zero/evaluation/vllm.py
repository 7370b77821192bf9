"""Zero-shot evaluation of a model that vLLM samples from, in one call."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from trl_r1zero.generation import Engine, SamplingConfig
from trl_r1zero.generation.vllm_offline import OfflineVLLMEngine, from_sampling_params
from trl_r1zero.grading import Grader, RewardFn

from .environment import folder_version, package_versions
from .sample_and_grade import evaluate

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams


class VLLMEvaluation(NamedTuple):
    """What `evaluate_vllm` returns."""

    # One dict for each completion, in the order of the prompts: `prompt`, `response`,
    # `ground_truth`, the reward's parts, `length` in tokens, `truncated` and more.
    results: list[dict[str, Any]]
    metrics: dict[str, Any]  # see `summarize_evaluation`


def evaluate_vllm(
    vllm_model: "LLM | Engine",
    reward_fn: RewardFn,
    prompts: Sequence[str],
    ground_truths: Sequence[Any],
    eval_sampling_params: "SamplingParams | SamplingConfig",
    output_path: str | Path | None = None,
) -> VLLMEvaluation:
    """Sample an answer to every prompt in one go, grade them, and write what came of it.

    It is `evaluate` for those who have a `vllm.LLM` and prompts at hand. Every completion draws
    from a random stream of its own, which the seed of `eval_sampling_params` begins (0 if it has
    none), so the same call gives the same answers.

    Args:
        vllm_model: A `vllm.LLM`, or any `Engine` (a vLLM server's, or transformers').
        reward_fn: `(response, ground_truth) -> dict` with the key `reward`, such as
            `r1_zero_reward_fn`.
        prompts: The formatted prompts, N of them.
        ground_truths: What the answers are graded against, N of them.
        eval_sampling_params: How to sample. With `n` above 1 each prompt gets n completions.
        output_path: Folder for `results.jsonl`, `summary.json`, `report.md` and `report.html`. An
            evaluation that was killed goes on there. Nothing is written if None.

    Raises:
        ValueError: Not as many ground truths as prompts; none of them; settings of vLLM's
            SamplingParams that are not supported; or the folder holds another evaluation.
        TypeError: `eval_sampling_params` is neither of the two kinds.
    """
    if len(prompts) != len(ground_truths):
        raise ValueError(
            f"got {len(prompts)} prompts but {len(ground_truths)} ground truths; give one for each"
        )
    # Where vllm was never imported, nothing can be of its types; importing it takes seconds.
    vllm = sys.modules.get("vllm")
    sampling, num_completions, seed = _sampling(eval_sampling_params, vllm)
    engine: Any = vllm_model
    settings: dict[str, Any] = {"versions": package_versions()}
    if vllm is not None and isinstance(vllm_model, vllm.LLM):
        engine, model = OfflineVLLMEngine(vllm_model), vllm_model.model_config.model
        settings = {"model": model, **folder_version(model), **settings}
    pairs = zip(prompts, ground_truths, strict=True)
    evaluation = evaluate(
        engine,
        [{"prompt": prompt, "ground_truth": truth} for prompt, truth in pairs],
        Grader(reward_fn),
        sampling,
        num_completions=num_completions,
        seed=seed,
        folder=output_path,
        settings=settings,
    )
    return VLLMEvaluation([row.as_row() for row in evaluation.rows], evaluation.summary)


def _sampling(
    given: "SamplingParams | SamplingConfig", vllm: ModuleType | None
) -> tuple[SamplingConfig, int, int]:
    if isinstance(given, SamplingConfig):
        return given, 1, 0
    if vllm is None or not isinstance(given, vllm.SamplingParams):
        raise TypeError(
            "eval_sampling_params must be a vllm.SamplingParams or a trl_r1zero.SamplingConfig, "
            f"got {type(given).__name__}"
        )
    sampling, num_completions, seed = from_sampling_params(given)
    return sampling, num_completions, seed or 0
