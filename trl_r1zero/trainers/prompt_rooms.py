"""The room for prompts that a trainer's config leaves."""

from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from trl_r1zero.data.prompt_room import PromptRoom, context_of

from .sampling_settings import SamplingSettings


def sampled_lengths(args: Any) -> dict[str, tuple[int, str, int | None]]:
    """Data whose prompts are sampled from (`train_data`, `eval_data`) -> new tokens at most, the
    setting of the trainer's config that says so, and how many prompts are used (None: all)."""
    if SamplingSettings not in type(args).__mro__:
        return {}
    lengths: dict[str, tuple[int, str, int | None]] = {}
    longest = getattr(args, "max_completion_length", None)
    if longest:
        lengths["train_data"] = longest, "max_completion_length", None
    if args.eval_every is not None:
        own = args.eval_max_completion_length
        setting = "eval_max_completion_length" if own else "max_completion_length"
        lengths["eval_data"] = own or longest or 0, setting, args.num_eval_examples
    return lengths


def prompt_rooms(
    args: Any,
    model_config: PretrainedConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    server_context: int | None = None,
) -> dict[str, PromptRoom]:
    """What the context leaves for the prompts of `sampled_lengths`; nothing if no limit is known.
    `server_context` is `max_model_len` of a vLLM server that runs already, if it is known."""
    lengths = sampled_lengths(args)
    if not lengths:
        return {}
    wanted = server_context or (args.vllm_server or {}).get("max_model_len")
    context, limit = context_of(model_config, tokenizer, vllm=args.use_vllm, max_model_len=wanted)
    if context is None:
        return {}
    return {key: PromptRoom(tokenizer, context, limit, *of_key) for key, of_key in lengths.items()}
