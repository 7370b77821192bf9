"""What samples in an evaluation: backends by name.

Each checks the arguments at once, and gives an engine that opens when it is needed.
"""

import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_r1zero.common.naming import unknown_name_message
from trl_r1zero.common.types import MISFIT, fit, type_name

# torch and transformers are imported when there is something to evaluate: --help needs neither.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trl_r1zero.data.prompt_room import PromptRoom
    from trl_r1zero.generation import Completion, Engine, SamplingConfig

    from .evaluation_arguments import EvaluationArguments

DEFAULT_BATCH_SIZE = 64


class DeferredEngine:
    """An `Engine` that is opened when it is needed: an evaluation that has all its answers, or
    whose folder is not its own, does not wait for a model."""

    def __init__(self, name: str, open_engine: "Callable[[], Engine]") -> None:
        self.name = name
        self._open = open_engine

    @cached_property
    def engine(self) -> "Engine":
        return self._open()

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        return self.engine.tokenizer

    def stream(
        self, prompt_ids: Sequence[Sequence[int]], sampling: "SamplingConfig", seeds: Sequence[int]
    ) -> "Iterator[tuple[int, Completion]]":
        return self.engine.stream(prompt_ids, sampling, seeds)

    def close(self) -> None:
        if "engine" in vars(self):
            self.engine.close()


def _transformers(arguments: "EvaluationArguments") -> DeferredEngine:
    from accelerate.utils import parse_flag_from_env

    from trl_r1zero.devices import machine_facts
    from trl_r1zero.devices.facts import check_accelerator

    # An error, or a warning, if it would be the CPU beside a GPU.
    machine, use_cpu = machine_facts(), parse_flag_from_env("ACCELERATE_USE_CPU")
    warning = check_accelerator(machine, use_cpu, setting="ACCELERATE_USE_CPU=true")
    if warning is not None:
        print(f"warning: {warning}", file=sys.stderr)
    device = "cuda" if machine.devices and not use_cpu else "cpu"

    def open_engine() -> "Engine":
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from trl_r1zero.generation import TransformersEngine

        tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=arguments.dtype)
        batch_size = arguments.batch_size or DEFAULT_BATCH_SIZE
        return TransformersEngine(model.to(device), tokenizer, batch_size=batch_size)

    return DeferredEngine("transformers", open_engine)


def _vllm(arguments: "EvaluationArguments") -> DeferredEngine:
    from trl_r1zero.generation.vllm_client import VLLMServerEngine
    from trl_r1zero.generation.vllm_server import VLLMServerConfig

    given = _vllm_settings(arguments)
    try:
        # The weights of this server are never replaced.
        config = VLLMServerConfig.from_settings({"weight_transfer": "none", **given})
    except ValueError as error:
        raise ValueError(f"server: {error}") from error
    return DeferredEngine("vllm-server", lambda: VLLMServerEngine.start(arguments.model, config))


def _vllm_offline(arguments: "EvaluationArguments") -> DeferredEngine:
    from trl_r1zero.generation.vllm_offline import OfflineVLLMEngine

    given = _vllm_settings(arguments)
    types = typing.get_type_hints(OfflineVLLMEngine.load)
    types = {name: hint for name, hint in types.items() if name not in ("model", "return")}
    for key, value in given.items():
        if key not in types:
            raise ValueError("server: " + unknown_name_message("setting", key, types))
        if fit(value, types[key]) is MISFIT:
            raise ValueError(f"server: {key} must be {type_name(types[key])}, got {value!r}")
    return DeferredEngine("vllm", lambda: OfflineVLLMEngine.load(arguments.model, **given))


def _vllm_settings(arguments: "EvaluationArguments") -> dict[str, Any]:
    from trl_r1zero.generation.vllm_server import is_cpu_build

    is_cpu_build()  # an error if there is no vLLM
    given = arguments.server or {}
    if "dtype" in given:
        raise ValueError("server: got dtype, which is a key of its own; write it as `dtype: ...`")
    return {"dtype": arguments.dtype, **given}


def _vllm_server(arguments: "EvaluationArguments") -> DeferredEngine:
    from trl_r1zero.generation.server_lock import weights_held
    from trl_r1zero.generation.vllm_client import VLLMServerEngine
    from trl_r1zero.generation.vllm_server import VLLMServerError

    url, model = arguments.server_url or "", arguments.model

    def open_engine() -> "Engine":
        with weights_held(url):  # by no trainer
            engine = VLLMServerEngine(url)
        served = engine.model
        same_folder = Path(model).is_dir() and Path(served).resolve() == Path(model).resolve()
        if served != model and not same_folder:
            raise VLLMServerError(
                f"the server at {url} serves {served!r}, but model is {model!r}; results are filed "
                "under the model's name, so give the one that is served"
            )
        return engine

    return DeferredEngine("vllm-server", open_engine)


def tokenizer_of(arguments: "EvaluationArguments", engine: DeferredEngine) -> Any:
    """The tokenizer of the model, which does not start for it; an OSError, RuntimeError or
    ValueError if it cannot be had."""
    from transformers import AutoTokenizer

    if arguments.backend == "vllm_server":
        return engine.tokenizer  # of a server that runs already
    return AutoTokenizer.from_pretrained(arguments.model)


def prompt_room(arguments: "EvaluationArguments", engine: DeferredEngine) -> "PromptRoom | None":
    """What the context leaves for prompts. None if that cannot be known before the engine opens,
    which then says what is wrong."""
    from transformers import AutoConfig

    from trl_r1zero.data.prompt_room import PromptRoom, context_of

    config, max_model_len = None, (arguments.server or {}).get("max_model_len")
    try:
        tokenizer = tokenizer_of(arguments, engine)
        if arguments.backend == "vllm_server":
            running: Any = engine.engine
            max_model_len = running.max_model_len
        else:
            config = AutoConfig.from_pretrained(arguments.model)
    except (OSError, RuntimeError, ValueError):
        return None
    vllm = arguments.backend != "transformers"
    context, limit = context_of(config, tokenizer, vllm=vllm, max_model_len=max_model_len)
    if context is None:
        return None
    return PromptRoom(tokenizer, context, limit, arguments.max_tokens, "max_tokens")


# To add a backend, add a line.
BACKENDS: dict[str, "Callable[[EvaluationArguments], DeferredEngine]"] = {
    "transformers": _transformers,
    "vllm": _vllm,
    "vllm_offline": _vllm_offline,
    "vllm_server": _vllm_server,
}
# Keys that only some backends have a use for.
KEYS_OF_BACKENDS = {
    "server": ("vllm", "vllm_offline"),
    "server_url": ("vllm_server",),
    "batch_size": ("transformers",),
}
