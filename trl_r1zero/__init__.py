"""R1-Zero-style reinforcement learning from verifiable rewards, on Hugging Face TRL.

Everything public is importable from here. Names are resolved on first use (PEP 562), so importing
the package, or only its rewards, does not import torch.
"""

from .common.lazy import lazy_names

__version__ = "0.1.0"

_NAMES, __getattr__ = lazy_names(
    __name__,
    {
        "functional": (
            "masked_mean masked_normalize compute_entropy get_response_log_probs "
            "compute_group_advantages compute_group_normalized_rewards "
            "compute_naive_policy_gradient_loss compute_grpo_clip_loss compute_grpo_no_clip_loss "
            "compute_policy_gradient_loss aggregate_loss sft_microbatch_train_step "
            "grpo_microbatch_train_step"
        ),
        "rewards": (
            "r1_zero_reward_fn question_only_reward_fn math_reward_fn explain "
            "parse_gsm8k_response parse_mmlu_response"
        ),
        "data.prompts": "Prompt load_prompt",
        "data.tasks": "get_task",
        "data.tokenization": "tokenize_prompt_and_output",
        "data.packing": "PackedSFTDataset iterate_batches",
        "generation": "SamplingConfig Completion generate",
        "evaluation": "log_generations evaluate_vllm",
        "trainers": (
            "R1ZeroGRPOConfig R1ZeroGRPOTrainer R1ZeroSFTConfig R1ZeroSFTTrainer "
            "ExpertIterationConfig ExpertIterationTrainer InstructionTuningConfig "
            "make_instruction_tuning_trainer R1ZeroDPOConfig R1ZeroDPOTrainer"
        ),
        "trainers.preference": "compute_per_instance_dpo_loss",
    },
)
__all__ = ["__version__", *_NAMES]


def __dir__() -> list[str]:
    return sorted(__all__)
