"""What becomes of the fields of TRL's configs that ours do not let be set.

Two tables for each trainer: fields that follow from ours (name -> what to set instead), and options
that are not supported (name -> why).
"""

from collections.abc import Mapping


def _by_name(names_of: Mapping[str, str]) -> dict[str, str]:
    """Texts with the names that they are about -> name -> text."""
    return {name: text for text, names in names_of.items() for name in names.split()}


_DERIVED = _by_name(
    {
        "eval_every": "do_eval eval_strategy eval_steps",
        "save_every": "save_strategy save_steps",
        "save_best (the best checkpoint is the one of best accuracy)": "metric_for_best_model "
        "greater_is_better",
        "save_best (the best model is in <output_dir>/best)": "load_best_model_at_end",
        "seed": "data_seed",
        "train_batch_size and gradient_accumulation_steps": "per_device_train_batch_size",
    }
)
_UNSUPPORTED = {
    "router_aux_loss_coef": "mixture-of-experts load balancing is not part of the loss",
    "auto_find_batch_size": "the batch sizes are part of the algorithm",
    "logging_nan_inf_filter": "it would hide a NaN loss",
    "pad_to_multiple_of": "each micro-batch is padded to its own longest row",
    "label_smoothing_factor": "label smoothing: it is not part of the loss",
    "torch_empty_cache_steps": "the training step is this trainer's own",
    "include_num_input_tokens_seen": "tokens are always counted, prompts and completions alike",
    "use_liger_kernel": "log-probabilities come from the model's logits or TRL's fused head",
}

# GRPO
DERIVED_FIELDS = {
    **_DERIVED,
    "num_generations": "group_size",
    "generation_batch_size": "rollout_batch_size",
    "steps_per_generation": "rollout_batch_size and train_batch_size",
    "num_iterations": "epochs_per_rollout_batch",
    "max_steps": "n_grpo_steps",
    "num_train_epochs": "n_grpo_steps",
    "scale_rewards": "use_std_normalization",
    "epsilon": "cliprange",
    "epsilon_high": "cliprange_high",
    "importance_sampling_level": "surrogate to gspo (clipped_ratio has the ratio of tokens)",
    "num_generations_eval": "num_eval_examples (validation draws one completion per problem)",
    "log_completions": "log_rollouts_every",
    "num_completions_to_print": "num_rollouts_to_log",
}
_NOT_AN_AXIS = (
    "it is not one of this trainer's surrogates, see SURROGATES in functional/loss_types.py"
)
_FIXED_LOSS = "the loss is advantage x surrogate x aggregation; this term is part of none of them"
UNSUPPORTED_FIELDS = {
    **_UNSUPPORTED,
    **_by_name(
        {
            f"SAPO: {_NOT_AN_AXIS}": "sapo_temperature_neg sapo_temperature_pos",
            f"VESPO: {_NOT_AN_AXIS}": "vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg",
            f"entropy mask: {_FIXED_LOSS}": "top_entropy_quantile",
            "the factor of the entropy bonus is the constant entropy_coef": "use_adaptive_entropy "
            "entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target",
            f"off-policy sequence mask: {_FIXED_LOSS}": "off_policy_mask_threshold",
            "it is for a vLLM inside of the trainer's process; see vllm_server for a server": (
                "vllm_tensor_parallel_size vllm_gpu_memory_utilization vllm_max_model_length "
                "vllm_enable_sleep_mode vllm_model_impl"
            ),
            "the transformers backend has its own decoding loop": "cache_implementation "
            "use_transformers_continuous_batching transformers_continuous_batching_config "
            "use_transformers_paged",
            "rollouts are written to <output_dir>/rollouts only": "log_completions_hub_repo "
            "log_unique_prompts",
        }
    ),
    "multi_objective_aggregation": "rewards are weighted and summed before the group baseline",
    "vllm_importance_sampling_cap": "it is an older name; set vllm_importance_sampling_clip_max",
    "repetition_penalty": "the policy's log-probabilities would not be those it was sampled from",
    "generation_kwargs": "sampling is set by temperature, top_p, top_k, min_p, min_tokens and "
    "max_completion_length; stop strings come from the prompt",
    "max_tool_calling_iterations": "there are no tools: a rollout is one completion",
    "log_multimodal": "prompts are text",
    "chat_template_kwargs": "a prompt file with `chat: true` has them in its header",
}

# TRL's names of fused combinations -> the three settings that they stand for.
TRL_LOSS_TYPES = {
    "grpo": "loss_type: grpo_clip, use_std_normalization: true, aggregation: masked_mean",
    "bnpo": "loss_type: grpo_clip, use_std_normalization: true, aggregation: token_mean",
    "dapo": "loss_type: grpo_clip (with cliprange_high: 0.28), use_std_normalization: true, "
    "aggregation: token_mean",
    "dr_grpo": "loss_type: grpo_clip, use_std_normalization: false, aggregation: masked_normalize",
    "cispo": "surrogate: cispo (with cliprange: 1 and cliprange_high: epsilon_high - 1), "
    "use_std_normalization: true, aggregation: token_mean",
    "sapo": "none here: its soft gate is not one of the surrogates",
    "luspo": "none here: its length scaling is not one of the aggregations",
    "vespo": "none here: its sequence kernel is not one of the surrogates",
}

# SFT
SFT_DERIVED_FIELDS = {**_DERIVED, "max_steps": "num_train_epochs"}
# Of all trainers that train for epochs over rows.
_UNSUPPORTED_WITH_ROWS = {
    **_UNSUPPORTED,
    "dataloader_drop_last": "a short train batch at the end of an epoch is trained on",
    "train_sampling_strategy": "shuffle_dataset says it",
    "ignore_data_skip": "a resumed run goes on at its own place in the data",
    "pad_token": "set the tokenizer's pad_token",
    "truncation_mode": "a row is never cut; max_length and overlong say what becomes of long rows",
    "activation_offloading": "the training step is this trainer's own",
}
SFT_UNSUPPORTED_FIELDS = {
    **_UNSUPPORTED_WITH_ROWS,
    **_by_name(
        {
            "rows are a prompt and a response, tokenised as `tokenize_prompt_and_output` does": (
                "dataset_text_field dataset_num_proc dataset_kwargs dataloader_num_workers"
            ),
            "rows stand alone: each micro-batch is as wide as its own longest row": (
                "packing packing_strategy padding_free eval_packing"
            ),
            "the loss is that of the response's tokens": "completion_only_loss assistant_only_loss",
        }
    ),
    "chat_template_path": "set the tokenizer's chat_template, which `prompt: chat` uses",
    "prediction_loss_only": "validation samples answers",
    "eos_token": "append_eos ends responses with the tokenizer's own end-of-sequence token",
    "loss_type": "the loss is the negative log-likelihood over normalize_constant",
}

# Expert iteration
EI_DERIVED_FIELDS = {
    **SFT_DERIVED_FIELDS,
    "max_steps": "n_ei_steps",
    "num_train_epochs": "sft_epochs_per_step",
}
EI_UNSUPPORTED_FIELDS = {
    **SFT_UNSUPPORTED_FIELDS,
    "max_length": "a response is at most max_completion_length tokens long",
    "overlong": "a response is at most max_completion_length tokens long",
    "append_eos": "responses are trained on as they were sampled",
    "eval_delay": "validation comes after every eval_every EI steps",
}

# DPO
DPO_DERIVED_FIELDS = {
    **SFT_DERIVED_FIELDS,
    "per_device_eval_batch_size": "train_batch_size and gradient_accumulation_steps",
}
DPO_UNSUPPORTED_FIELDS = {
    **_UNSUPPORTED_WITH_ROWS,
    **_by_name(
        {
            "rows are an instruction and two responses, in the Alpaca template": (
                "dataset_num_proc dataloader_num_workers"
            ),
            "the loss is that of `dpo_loss` (Rafailov et al. 2023, eq. 7)": "loss_type "
            "loss_weights ld_alpha f_divergence_type f_alpha_divergence_coef label_smoothing "
            "use_weighting discopop_tau",
            "the reference is the model that the run began with": "sync_ref_model "
            "ref_model_mixup_alpha ref_model_sync_steps",
        }
    ),
    "prediction_loss_only": "validation has metrics of its own",
    "padding_free": "each micro-batch is padded to its own longest sequence",
}
