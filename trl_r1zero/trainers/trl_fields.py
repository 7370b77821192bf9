"""What becomes of the fields of TRL's `GRPOConfig` that `R1ZeroGRPOConfig` does not let be set."""

# Fields of TRL's config that follow from ours: name -> what to set instead.
DERIVED_FIELDS = {
    "num_generations": "group_size",
    "per_device_train_batch_size": "train_batch_size and gradient_accumulation_steps",
    "generation_batch_size": "rollout_batch_size",
    "steps_per_generation": "rollout_batch_size and train_batch_size",
    "num_iterations": "epochs_per_rollout_batch",
    "max_steps": "n_grpo_steps",
    "num_train_epochs": "n_grpo_steps",
    "scale_rewards": "use_std_normalization",
    "epsilon": "cliprange",
    "epsilon_high": "cliprange_high",
    "do_eval": "eval_every",
    "eval_strategy": "eval_every",
    "eval_steps": "eval_every",
    "num_generations_eval": "num_eval_examples (validation draws one completion per problem)",
    "save_strategy": "save_every",
    "save_steps": "save_every",
    "metric_for_best_model": "save_best (the best checkpoint is the one of best accuracy)",
    "greater_is_better": "save_best (the best checkpoint is the one of best accuracy)",
    "load_best_model_at_end": "save_best (the best model is in <output_dir>/best)",
    "log_completions": "log_rollouts_every",
    "num_completions_to_print": "num_rollouts_to_log",
    "data_seed": "seed",
}

# Options of TRL's loss and generation that are not supported: name -> why.
_NOT_AN_AXIS = (
    "it is not one of this trainer's surrogates, see SURROGATES in functional/policy_losses.py"
)
_FIXED_LOSS = "the loss is advantage x surrogate x aggregation; this term is part of none of them"
_COLOCATE = "it is for a vLLM inside of the trainer's process; see vllm_server for a server"
UNSUPPORTED_FIELDS = {
    "delta": f"two-sided clipping: {_NOT_AN_AXIS}",
    "importance_sampling_level": f"sequence-level ratios: {_NOT_AN_AXIS}",
    "sapo_temperature_neg": f"SAPO: {_NOT_AN_AXIS}",
    "sapo_temperature_pos": f"SAPO: {_NOT_AN_AXIS}",
    "vespo_k_pos": f"VESPO: {_NOT_AN_AXIS}",
    "vespo_lambda_pos": f"VESPO: {_NOT_AN_AXIS}",
    "vespo_k_neg": f"VESPO: {_NOT_AN_AXIS}",
    "vespo_lambda_neg": f"VESPO: {_NOT_AN_AXIS}",
    "top_entropy_quantile": f"entropy mask: {_FIXED_LOSS}",
    "entropy_coef": f"entropy bonus: {_FIXED_LOSS}",
    "use_adaptive_entropy": f"entropy bonus: {_FIXED_LOSS}",
    "entropy_coef_min": f"entropy bonus: {_FIXED_LOSS}",
    "entropy_coef_max": f"entropy bonus: {_FIXED_LOSS}",
    "entropy_coef_delta": f"entropy bonus: {_FIXED_LOSS}",
    "entropy_target": f"entropy bonus: {_FIXED_LOSS}",
    "off_policy_mask_threshold": f"off-policy sequence mask: {_FIXED_LOSS}",
    "router_aux_loss_coef": "mixture-of-experts load balancing is not part of the loss",
    "multi_objective_aggregation": "rewards are weighted and summed before the group baseline",
    "vllm_importance_sampling_cap": "it is an older name; set vllm_importance_sampling_clip_max",
    "vllm_tensor_parallel_size": _COLOCATE,
    "vllm_gpu_memory_utilization": _COLOCATE,
    "vllm_max_model_length": _COLOCATE,
    "vllm_enable_sleep_mode": _COLOCATE,
    "vllm_model_impl": _COLOCATE,
    "repetition_penalty": "the policy's log-probabilities would not be those it was sampled from",
    "generation_kwargs": "sampling is set by temperature, top_p, top_k, min_p, min_tokens and "
    "max_completion_length; stop strings come from the prompt",
    "cache_implementation": "the transformers backend has its own decoding loop",
    "use_transformers_continuous_batching": "the transformers backend has its own decoding loop",
    "transformers_continuous_batching_config": "the transformers backend has its own decoding loop",
    "use_transformers_paged": "the transformers backend has its own decoding loop",
    "max_tool_calling_iterations": "there are no tools: a rollout is one completion",
    "log_completions_hub_repo": "rollouts are written to <output_dir>/rollouts only",
    "log_multimodal": "prompts are text",
    "log_unique_prompts": "rollouts are written to <output_dir>/rollouts only",
    "chat_template_kwargs": "prompts are formatted by a prompt file, not by a chat template",
    "auto_find_batch_size": "the batch sizes are part of the algorithm",
    "logging_nan_inf_filter": "it would hide a NaN loss",
    "pad_to_multiple_of": "each micro-batch is padded to its own longest row",
    "label_smoothing_factor": f"label smoothing: {_FIXED_LOSS}",
    "torch_empty_cache_steps": "the training step is this trainer's own",
    "include_num_input_tokens_seen": "tokens are always counted, prompts and completions alike",
    "use_liger_kernel": "log-probabilities come from the model's logits or TRL's fused head",
}

# TRL's names of fused combinations -> the three settings that they stand for.
TRL_LOSS_TYPES = {
    "grpo": "loss_type: grpo_clip, use_std_normalization: true, aggregation: masked_mean",
    "bnpo": "loss_type: grpo_clip, use_std_normalization: true, aggregation: token_mean",
    "dapo": "loss_type: grpo_clip (with cliprange_high: 0.28), use_std_normalization: true, "
    "aggregation: token_mean",
    "dr_grpo": "loss_type: grpo_clip, use_std_normalization: false, aggregation: masked_normalize",
    "cispo": "none here: its clipped importance weight is not one of the surrogates",
    "sapo": "none here: its soft gate is not one of the surrogates",
    "luspo": "none here: its length scaling is not one of the aggregations",
    "vespo": "none here: its sequence kernel is not one of the surrogates",
}
