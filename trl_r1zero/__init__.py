"""R1-Zero-style reinforcement learning from verifiable rewards, on Hugging Face TRL.

Everything public is importable from here. Names are resolved on first use (PEP 562), so importing
the package, or only its rewards, does not import torch.
"""

from .common.lazy import lazy_names

__version__ = "0.1.0"

# Public name -> the module that defines it.
_EXPORTS = {
    # functional: pure functions of tensors
    "masked_mean": "functional",
    "masked_normalize": "functional",
    "compute_entropy": "functional",
    "get_response_log_probs": "functional",
    "compute_group_advantages": "functional",
    "compute_group_normalized_rewards": "functional",
    "compute_naive_policy_gradient_loss": "functional",
    "compute_grpo_clip_loss": "functional",
    "compute_grpo_no_clip_loss": "functional",
    "compute_policy_gradient_loss": "functional",
    "aggregate_loss": "functional",
    "sft_microbatch_train_step": "functional",
    "grpo_microbatch_train_step": "functional",
    # rewards
    "r1_zero_reward_fn": "rewards",
    "question_only_reward_fn": "rewards",
    "math_reward_fn": "rewards",
    "explain": "rewards",
    "parse_gsm8k_response": "rewards",
    "parse_mmlu_response": "rewards",
    # data
    "Prompt": "data.prompts",
    "load_prompt": "data.prompts",
    "get_task": "data.tasks",
    "tokenize_prompt_and_output": "data.tokenization",
    "PackedSFTDataset": "data.packing",
    "iterate_batches": "data.packing",
    # generation
    "SamplingConfig": "generation",
    "Completion": "generation",
    "generate": "generation",
    # evaluation
    "log_generations": "evaluation",
    "evaluate_vllm": "evaluation",
    # trainers
    "R1ZeroGRPOConfig": "trainers",
    "R1ZeroGRPOTrainer": "trainers",
    "R1ZeroSFTConfig": "trainers",
    "R1ZeroSFTTrainer": "trainers",
    "ExpertIterationConfig": "trainers",
    "ExpertIterationTrainer": "trainers",
    "InstructionTuningConfig": "trainers",
    "make_instruction_tuning_trainer": "trainers",
    "R1ZeroDPOConfig": "trainers",
    "R1ZeroDPOTrainer": "trainers",
    "compute_per_instance_dpo_loss": "trainers.preference",
}

__all__ = ["__version__", *_EXPORTS]


__getattr__ = lazy_names(__name__, _EXPORTS)


def __dir__() -> list[str]:
    return sorted(__all__)
