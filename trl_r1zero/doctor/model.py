"""The model of a run: whether it is available, and what it is; no weights are read."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_r1zero.devices.training_setup import DTYPE_BYTES, ModelShape
from trl_r1zero.recipe.requirements import check_model_path

from .findings import Finding, ok, problem, problem_of, warning, would_fail

HUB_SECONDS = 5.0
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


@dataclass(frozen=True)
class Model:
    """What is known of a model."""

    context: int | None  # tokens of the longest text that it is made for
    tokenizer: Any  # None if it cannot be loaded
    shape: ModelShape | None  # None for an architecture whose memory is not known
    dtype: str  # in which weights are loaded
    trainable_parameters: int | None  # with adapters; None: all


def load_model(model_args: Any) -> tuple[Model | None, list[Finding]]:
    """Config and tokenizer, from a folder, the hub's cache, or the hub itself."""
    from transformers import AutoConfig, AutoTokenizer

    name, revision = model_args.model_name_or_path, model_args.model_revision
    try:
        check_model_path(name)
    except ValueError as error:
        return None, [problem_of("model/model", error)]
    folder = Path(name).expanduser()
    findings = list(_check_folder(folder) if folder.is_dir() else _check_hub(name, revision))
    if would_fail(findings):
        return None, findings
    source = str(folder) if folder.is_dir() else name
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        return None, [*findings, problem("model/config", _first_line(error))]
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, padding_side="left")
        findings += check_tokenizer(tokenizer, config, source)
    except Exception as error:  # tokenizers raise all kinds
        tokenizer = None
        found = f"the tokenizer cannot be loaded: {_first_line(error)}"
        needed = "tokenizer.json, or vocab.json and merges.txt, beside config.json"
        findings.append(problem("model/tokenizer", found, needed, "copy them there"))
    given = getattr(config, "dtype", None) if model_args.dtype == "auto" else model_args.dtype
    dtype, shape = str(given).removeprefix("torch."), None
    dtype = dtype if dtype in DTYPE_BYTES else "float32"
    try:
        shape = ModelShape.from_config(config)
    except ValueError as error:
        findings.append(warning("model/architecture", _first_line(error)))
    else:
        size = f"{shape.num_parameters:,} parameters, context {shape.max_positions:,} tokens"
        found = f"{name}: {shape.model_type}, {size}, trained in {dtype} weights"
        findings.append(ok("model/model", found))
    context = getattr(config, "max_position_embeddings", None)
    return Model(context, tokenizer, shape, dtype, _count_adapters(model_args, config)), findings


def check_tokenizer(tokenizer: Any, config: Any, source: str = "") -> Iterator[Finding]:
    """Whether a tokenizer fits a model, whose generation config is in `source`, if it has one."""
    from transformers import GenerationConfig

    from trl_r1zero.generation.endings import eos_disagreement

    yield ok("model/tokenizer", f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens")
    if len(tokenizer) > config.vocab_size:
        found = f"the tokenizer has {len(tokenizer):,} tokens, the model only {config.vocab_size:,}"
        advice = "take the model's own tokenizer"
        yield problem("model/vocabulary", found, "a tokenizer of this model", advice)
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        found = "the tokenizer has neither a pad token nor an end token"
        do = "set pad_token in tokenizer_config.json"
        yield problem("model/padding", found, "one of them", do)
    if eos_disagreement(tokenizer, config) is None:
        return
    try:
        generation_config = GenerationConfig.from_pretrained(source)
    except OSError:  # there is none
        generation_config = None
    if disagreement := eos_disagreement(tokenizer, config, generation_config):
        found, _, advice = disagreement.partition("; ")
        yield warning("model/eos", found, do=advice)


def _check_folder(folder: Path) -> Iterator[Finding]:
    if not (folder / "config.json").is_file():
        needed = "a model's folder, as save_pretrained writes it"
        advice = "give another model_name_or_path"
        yield problem("model/config", f"{folder} has no config.json", needed, advice)
    elif not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        found = f"{folder} has no weights: enough to look at it, not to train"
        advice = "download them before the run starts"
        yield warning("model/weights", found, "model.safetensors", advice)


def _check_hub(name: str, revision: str) -> Iterator[Finding]:
    """Whether a hub id is in the cache, or can be reached within seconds."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        yield ok("model/hub", f"{name} is in the hub's cache on this machine")
        return
    try:
        HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS)
    except Exception as error:  # no network, offline, no such model, no rights
        found = (
            f"{name} is not in the hub's cache, and the hub does not give it "
            f"({type(error).__name__}: {_first_line(error)})"
        )
        advice = (
            f"on a machine with a network: hf download {name} --local-dir FOLDER; then "
            "--model_name_or_path FOLDER (to look at the rest only, config.json and the "
            "tokenizer's files are enough)"
        )
        yield problem("model/hub", found, "a model that can be had", advice)
    else:
        yield ok("model/hub", f"the hub has {name}; it is downloaded when the run starts")


def _count_adapters(model_args: Any, config: Any) -> int | None:
    """Parameters of the adapters that a recipe trains, counted on the meta device."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM
    from trl import get_peft_config

    peft_config = get_peft_config(model_args)
    if peft_config is None:
        return None
    with torch.device("meta"):
        model = get_peft_model(AutoModelForCausalLM.from_config(config), peft_config)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
