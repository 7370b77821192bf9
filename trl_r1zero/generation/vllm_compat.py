"""What this package uses of vLLM beyond its documented interface, in one place.

The other place is the weight-transfer engine that vLLM loads (`vllm_engine`, by `vllm_plugin`).
tests/generation/test_vllm_contract.py compares both with the installed vLLM. vLLM is imported
inside functions, as that takes seconds.
"""

import json
import os
import re
import sys
import threading
from collections.abc import Container, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from trl_r1zero.devices.placement import OWN_DEVICE_SHARE
from trl_r1zero.devices.visible import VARIABLE, variable_for

from .vllm_server_config import VLLMServerConfig

# What vLLM calls the engine of each way of weights. The last two are this package's; vLLM has an
# engine `ipc` of its own, which is another one.
BACKENDS = {"nccl": "nccl", "gloo": "gloo", "ipc": "trl_r1zero_ipc"}
PLUGIN = "trl_r1zero_gloo"  # the entry point of `vllm_plugin` in pyproject.toml

# A server's environment. The supervisor of a server is told the last two.
_DEV_MODE = "VLLM_SERVER_DEV_MODE"
SOCKETS_VARIABLE = "VLLM_RPC_BASE_PATH"
PROCESS_PREFIX = os.environ.get("VLLM_PROCESS_NAME_PREFIX", "VLLM") + "::"
# Longer than a step of training: a client's idle connection is not closed just as it is used again.
_KEEP_ALIVE_SECONDS = 3600
# Set by launchers for the training processes; vLLM would take them for its own. OMP_NUM_THREADS
# too: `accelerate launch` and torchrun set it to 1.
_LAUNCHER_VARIABLES = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|"
    r"(TORCHELASTIC|ACCELERATE|FSDP)_.*|OMP_NUM_THREADS"
)

# Endpoints that a server has with VLLM_SERVER_DEV_MODE only.
SERVER_INFO = "/server_info?config_format=json"
IS_SLEEPING = "/is_sleeping"
SLEEP = "/sleep?level={level}&mode=wait"
WAKE_UP = "/wake_up?tags={tag}"
GET_WORLD_SIZE = "/get_world_size"
INIT_TRANSFER = "/init_weight_transfer_engine"
START_UPDATE = "/start_weight_update"
UPDATE_WEIGHTS = "/update_weights"
FINISH_UPDATE = "/finish_weight_update"
RESET_PREFIX_CACHE = "/reset_prefix_cache"

# With requests under way: they stand still, take up the new weights with their next token, and what
# their earlier tokens left in the cache is computed anew.
PAUSE = "/pause?mode=keep"
RESET_RUNNING = "/reset_prefix_cache?reset_running_requests=true"
RESUME = "/resume"
# With a server that takes adapters.
LOAD_ADAPTER = "/v1/load_lora_adapter"
UNLOAD_ADAPTER = "/v1/unload_lora_adapter"
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what `--max-lora-rank` takes
# Of a request whose first token is answered by itself, and the rest in one piece.
FIRST_TOKEN_APART = {"stream": True, "stream_interval": 2**30}

# How vLLM's NCCL engine packs weights. A chunk is filled until it is larger; two are on their way
# at a time. vLLM's default is 1 GiB, much for a server with nine tenths of a small GPU.
NCCL_PACKING = {
    "packed": True,
    "packed_buffer_size_bytes": 256 * 2**20,
    "packed_num_buffers": 2,
}
_SECONDS_TO_ABORT = 5.0

# (EngineCore pid=5724) ERROR 11-24 12:58:09 [core.py:1435] text, or a part of it.
LOG_LINE = re.compile(
    r"(?:\((?P<process>[^()]* pid=\d+)\) ?)?"
    r"(?:(?P<level>[A-Z]+) \d\d-\d\d \d\d:\d\d:\d\d (?:\[[^\]]*\] ?)?)?"
    r"(?P<text>.*)"
)
ENGINE_PROCESSES = ("EngineCore", "Worker", "VllmWorker")
# vLLM's words for it and the supervisor's; the requests that fail with it know no reason.
ENGINE_IS_GONE = re.compile(r"died unexpectedly|the server lost its ")
# The last word of the command-line parser, of the supervisor (vllm_supervisor.py), and of the
# interpreter where there is nothing to run.
PLAIN_ERRORS = re.compile(
    r"(?:main\.py|vllm\S*): error: |vllm_supervisor\.py: |.*: No module named "
)
# What the first error matches -> what to do. The first match counts.
HINTS = {
    r"Address already in use": (
        "another program has the port: give another one, or none for a free one"
    ),
    r"greater than the derived max_model_len": (
        "lower max_model_len to what the model's config allows"
    ),
    r"max seq len|larger than the available KV cache|smaller than max_model_len": (
        "the key-value cache is too small for max_model_len: lower max_model_len, or give the "
        "cache more (cpu_kv_cache_gb on a CPU, gpu_memory_utilization on a GPU)"
    ),
    r"(?i)out of memory|OutOfMemory|can't allocate memory|Available memory on node|"
    r"Free memory on device|No available memory for the cache|\bSIGKILL\b|MemoryError|"
    r"the server lost its |died unexpectedly": (
        "memory ran out: lower cpu_kv_cache_gb on a CPU; on a GPU lower gpu_memory_utilization or "
        "max_model_len, or name a free GPU in devices"
    ),
    r"Repo id must be|not a valid model identifier|Repository Not Found|not a local folder|"
    r"We couldn't connect|offline mode|LocalEntryNotFound|config\.json": (
        "give the path of a model's folder, or the id of a model that the hub has"
    ),
    r"Unsupported CPU attention configuration": (
        "vLLM's kernels for CPUs want attention heads of 32 dimensions or more"
    ),
    r"does not support LoRA": "vLLM has no adapters for this model: set vllm_lora to merged",
    r"[Ww]eight transfer (?:backend|engine)": (
        "vLLM does not know this package's plugin: install the package again in vLLM's environment "
        '(pip install -c constraints.txt -e ".[vllm]")'
    ),
    r"No module named '?vllm": "vLLM cannot be imported in this environment; install it again",
    r": error: ": "extra_args go to vLLM as they are; `vllm serve --help=all` lists its flags",
}


# Fields of SamplingParams that change how a completion is handed over, but not the completion.
HANDOVER_FIELDS = (
    "logprobs",
    "flat_logprobs",
    "output_kind",
    "output_text_buffer_length",
    "skip_clone",
    "skip_reading_prefix_cache",
    "stream_interval",
)


def answer_of(data: bytes) -> Any:
    """What a server answered: JSON, or the pieces of a completion's stream as one completion."""
    if not data.startswith(b"data: "):
        return json.loads(data)
    lines = (line[6:] for line in data.splitlines() if line.startswith(b"data: {"))
    choices = [choice for line in lines for choice in json.loads(line).get("choices", ())]
    if not choices:  # a stream that broke off: nothing ended it
        return {"choices": [{"finish_reason": data.decode("utf-8", "replace")}]}
    log_probs = [x for one in choices for x in (one["logprobs"] or {}).get("token_logprobs", ())]
    ids = [token for one in choices for token in one["token_ids"] or ()]
    return {
        "choices": [choices[-1] | {"token_ids": ids, "logprobs": {"token_logprobs": log_probs}}]
    }


# A server's start


def serve_command(
    model: str, config: VLLMServerConfig, port: int | None, transfer: str | None, on_cpu: bool
) -> list[str]:
    """The command line of `vllm serve`; `transfer` is the way of weights, None for none."""
    share = config.gpu_memory_utilization
    flags: dict[str, Any] = {
        "host": config.host,
        "port": port,
        "dtype": config.dtype,
        "tensor-parallel-size": config.tensor_parallel_size,
        "data-parallel-size": config.data_parallel_size,
        # The model's own would change the sampling of requests that leave something open.
        "generation-config": "vllm",
        # Of the distribution that was sampled from, any number of them: what TRL relies on.
        "logprobs-mode": "processed_logprobs",
        "max-logprobs": -1,
        "max-model-len": config.max_model_len,
        "max-num-seqs": config.max_num_seqs,
    }
    if config.max_lora_rank is not None:
        rank = next(rank for rank in LORA_RANKS if rank >= config.max_lora_rank)
        flags |= {"max-lora-rank": rank, "max-loras": config.max_loras}
    if on_cpu:
        flags["kv-cache-memory-bytes"] = int(config.cpu_kv_cache_gb * 2**30)
    else:
        flags["gpu-memory-utilization"] = OWN_DEVICE_SHARE if share is None else share
    if transfer is not None:
        flags["weight-transfer-config"] = json.dumps({"backend": BACKENDS[transfer]})
    switches = {
        # For CPUs vLLM refuses the flag; its endpoints for sleeping are there without it.
        "enable-sleep-mode": bool(config.sleep_level) and not on_cpu,
        "disable-uvicorn-access-log": True,
        "enable-lora": config.max_lora_rank is not None,
        # A prompt that is cut in two ends the engine if its request has a seed: vLLM rewinds the
        # random stream then, which a CPU's cannot ("CPU Generator does not use offset").
        "no-enable-chunked-prefill": on_cpu,
        "enforce-eager": on_cpu if config.enforce_eager is None else config.enforce_eager,
    }
    # -P: the working directory is no place to import from.
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.cli.main", "serve", model]
    command += [f"--{name}={value}" for name, value in flags.items() if value is not None]
    command += [f"--{name}" for name, wanted in switches.items() if wanted]
    return command + config.extra_args


def serve_environment(
    config: VLLMServerConfig, transfer: str | None, on_cpu: bool
) -> dict[str, str]:
    """A server's environment: this process's, without what a launcher set for trainers.

    A ValueError if there are no such devices.
    """
    environment = {
        name: value for name, value in os.environ.items() if not _LAUNCHER_VARIABLES.fullmatch(name)
    }
    environment[_DEV_MODE] = "0" if transfer is None else "1"
    if config.max_lora_rank is not None:
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    environment["VLLM_NO_USAGE_STATS"] = environment["DO_NOT_TRACK"] = "1"
    environment.setdefault("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", str(_KEEP_ALIVE_SECONDS))
    plugins = environment.get("VLLM_PLUGINS")
    if transfer in ("gloo", "ipc") and plugins is not None:
        names = [name for name in plugins.split(",") if name not in ("", PLUGIN)]
        environment["VLLM_PLUGINS"] = ",".join([*names, PLUGIN])
    if config.devices is not None:
        environment[VARIABLE] = variable_for(str(config.devices), os.environ)
    if on_cpu:
        environment.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would win over the flag
        environment["OMP_NUM_THREADS"] = str(config.num_cpu_threads)
        # Not tied to cores: a trainer, or a second server, works on the same ones.
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return environment


# NCCL


class NCCLCommunicator:
    """vLLM's NCCL communicator. Threads that call it (but `abort`) are on the trainer's device."""

    def __init__(self) -> None:
        self._group: Any = None

    def connect(self, store: dist.Store, world_size: int, device_index: int) -> None:
        """Join the server's workers as rank 0; may block until the last one is there.

        A RuntimeError if vLLM has no NCCL here, or with NCCL's error.
        """
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
        from vllm.distributed.utils import StatelessProcessGroup

        process_group = StatelessProcessGroup(rank=0, world_size=world_size, store=store)
        group = PyNcclCommunicator(process_group, device=device_index)
        if group.disabled:
            raise RuntimeError(
                "vLLM finds no NCCL library, or VLLM_DISABLE_PYNCCL is set; see VLLM_NCCL_SO_PATH"
            )
        self._group = group

    def broadcast(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Send named tensors, on the GPU, to all workers; returns when they have left."""
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        def take(named: tuple[str, torch.Tensor]) -> torch.Tensor:
            tensor = named[1]
            tensor.record_stream(torch.cuda.current_stream())  # packed on another than made on
            return tensor

        packed_nccl_broadcast_producer(
            iterator=tensors,
            group=self._group,
            src=0,
            post_iter_func=take,
            buffer_size_bytes=NCCL_PACKING["packed_buffer_size_bytes"],
            num_buffers=NCCL_PACKING["packed_num_buffers"],
        )

    def abort(self) -> None:
        """End what another thread is blocked in, and give up the communicator.

        `ncclCommAbort` ends kernels and calls that wait for a peer. A thread that waits for workers
        within `ncclCommInitRank` has no communicator yet: it is left behind, and blocks nothing.
        """
        group, self._group = self._group, None
        if group is None:
            return
        from vllm.distributed.weight_transfer import packed_tensor

        group.disabled = True  # first: its `broadcast` must not touch what is being freed

        def abort() -> None:
            torch.cuda.set_device(group.device)
            group.nccl.ncclCommAbort(group.comm)

        thread = threading.Thread(target=abort, daemon=True)
        thread.start()
        thread.join(_SECONDS_TO_ABORT)
        # The streams that vLLM keeps for chunks: should one be stuck, the next transfer has others.
        packed_tensor._get_streams.cache_clear()


# vLLM in this process


def token_prompt(token_ids: Iterable[int]) -> Any:
    """A prompt for `LLMEngine.add_request`."""
    from vllm.inputs import tokens_input

    return tokens_input(list(token_ids))


def changed_fields(params: Any, but: Container[str]) -> dict[str, Any]:
    """The fields of a `vllm.SamplingParams` that differ from the default, some apart."""
    default = type(params)()
    return {
        name: value
        for name in params.__struct_fields__
        if not name.startswith("_")
        and name not in but
        and (value := getattr(params, name)) != getattr(default, name)
    }


def shut_down(llm: Any, seconds: float) -> None:
    """End the processes of a `vllm.LLM`; they are killed after so long."""
    llm.llm_engine.engine_core.shutdown(timeout=seconds)
