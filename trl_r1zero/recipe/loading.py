"""The model of a recipe, and where its run begins."""

from contextlib import suppress
from typing import Any

from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config, get_quantization_config

from trl_r1zero.common.processes import from_main_process
from trl_r1zero.data.prompt_room import PromptRoom
from trl_r1zero.generation.server_lock import weights_held
from trl_r1zero.trainers.prompt_rooms import prompt_rooms

from .requirements import check_model_path


def load_tokenizer(model_args: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe's model, which pads with its eos token if it has no pad token;
    errors as those of `check_model_path`, and a ValueError if it has neither."""
    check_model_path(model_args.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, padding_side="left"
    )
    if not tokenizer("0")["input_ids"]:
        raise ValueError(
            f"{model_args.model_name_or_path} has no tokenizer, or one without tokens; copy "
            "tokenizer.json and tokenizer_config.json of the model it was made from there"
        )
    if tokenizer.pad_token is None:  # rows' lengths tell padding from a real eos token
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ValueError(
            f"the tokenizer of {model_args.model_name_or_path} has neither a pad token nor an eos "
            "token; set eos_token in its tokenizer_config.json to the token that ends a text"
        )
    return tokenizer


def load_prompt_rooms(
    config: Any, model_args: ModelConfig, tokenizer: PreTrainedTokenizerBase
) -> dict[str, PromptRoom]:
    """See `prompt_rooms`; a server that runs already is asked, a collective call.

    Raises:
        VLLMServerError: There is no such server, or another process trains with it.
    """
    server_context = None
    if getattr(config, "use_vllm", False) and config.vllm_server is None:
        servers = config.running_servers

        def ask() -> int:
            with weights_held(*servers.base_urls):  # or they are another trainer's
                return servers.connect(tokenizer).max_model_len

        server_context = from_main_process(ask)
    name, model_config = str(model_args.model_name_or_path), None
    with suppress(OSError, ValueError):  # the trainer says what is wrong with it
        model_config = AutoConfig.from_pretrained(name, revision=model_args.model_revision)
    return prompt_rooms(config, model_config, tokenizer, server_context)


def _loading(model_args: ModelConfig) -> dict[str, Any]:
    return {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    }


def load_model(model_args: ModelConfig) -> Any:
    """The model of a recipe, for trainers that do not load it themselves; with PEFT, if asked for.

    A ValueError if it is to be quantized, which full fine-tuning and this loader do not do.
    """
    if get_quantization_config(model_args) is not None:
        raise ValueError("load_in_4bit and load_in_8bit are not supported here; remove them")
    name = str(model_args.model_name_or_path)
    model = AutoModelForCausalLM.from_pretrained(name, **_loading(model_args))
    peft_config = get_peft_config(model_args)
    return model if peft_config is None else get_peft_model(model, peft_config)


def model_settings(config: Any, model_args: ModelConfig) -> dict[str, Any]:
    """The arguments of a trainer that say which model it trains; some of them go into `config`."""
    config.model_init_kwargs = {**_loading(model_args), **(config.model_init_kwargs or {})}
    return {
        "model": model_args.model_name_or_path,
        "args": config,
        "peft_config": get_peft_config(model_args),
        "quantization_config": get_quantization_config(model_args),
    }
