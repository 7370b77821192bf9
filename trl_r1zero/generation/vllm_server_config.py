"""The settings of a vLLM server."""

import os
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from trl_r1zero.common.arguments import Count, Positive, Range, arg, check_ranges
from trl_r1zero.common.naming import unknown_name_message
from trl_r1zero.common.types import MISFIT, fit, type_name
from trl_r1zero.devices import placement

DTYPES = ("auto", "bfloat16", "float16", "float32")
WEIGHT_TRANSFERS = ("auto", *placement.WEIGHT_TRANSFERS, "none")
_ALLOWED = {
    "dtype": DTYPES,
    "sleep_level": (None, 0, 1, 2),
    "weight_transfer": WEIGHT_TRANSFERS,
}
Port = Annotated[int, Range("between 1 and 65535", lambda value: 0 < value <= 65535)]
Share = Annotated[float, Range("in (0, 1]", lambda value: 0 < value <= 1)]
Rank = Annotated[int, Range("between 1 and 512", lambda value: 0 < value <= 512)]


@dataclass
class VLLMServerConfig:
    """How a server is started; a ValueError for a value of the wrong type or outside its range."""

    host: str = arg(
        "127.0.0.1",
        "Address to listen on. Whoever reaches it can replace the weights: keep it to this machine "
        "unless the trainer is on another one and the network is yours.",
    )
    port: Port | None = arg(None, "Port to listen on. Unset: a free one.")
    dtype: str = arg(
        "auto",
        f"What to compute in: {', '.join(DTYPES)}. auto: the model's own if that has 16 bits, else "
        "one that has; so say float32 if that is meant.",
    )
    max_model_len: Count | None = arg(
        None, "Tokens of a prompt and its completion at most. Unset: what the model allows."
    )
    max_num_seqs: Count | None = arg(None, "Completions at a time. Unset: vLLM's choice.")
    gpu_memory_utilization: Share | None = arg(
        None,
        "On a GPU: share of its memory that the server takes. Unset: 0.9 of a GPU that is the "
        "server's own, what the trainer leaves of one that both use.",
    )
    tensor_parallel_size: Count = arg(1, "Devices that share one copy of the model.")
    data_parallel_size: Count = arg(1, "Copies of the model.")
    devices: str | int | None = arg(
        None,
        "GPUs of the server, such as 1 or '2,3', counted from 0 within CUDA_VISIBLE_DEVICES. "
        "Unset: those after the trainers' own, or the first where there are no more.",
    )
    sleep_level: int | None = arg(
        None,
        "What the server does with its memory while the trainer trains. 0: keeps it. 1: moves its "
        "weights to the host's memory and gives up the cache. 2: gives up both; the weights are "
        "sent again. Unset: 2 on a GPU that trainer and server share, else 0.",
    )
    cpu_kv_cache_gb: Positive = arg(
        1.0, "On a CPU: GiB for the key-value cache, taken at the start."
    )
    cpu_threads: Count | None = arg(
        None,
        "On a CPU: threads that compute, whatever OMP_NUM_THREADS says. Unset: one for each core "
        "but one, which schedules and answers.",
    )
    enforce_eager: bool | None = arg(
        None, "No CUDA graphs, no compilation. Unset: so on a CPU, not so on a GPU."
    )
    weight_transfer: str = arg(
        "auto",
        f"How new weights arrive: {', '.join(WEIGHT_TRANSFERS)}. auto: nccl from one GPU to "
        "another, ipc (shared memory) on one GPU, gloo (through the host) otherwise; for a server "
        "that a trainer finds later, nccl on GPUs and gloo on CPUs. none: never, and the endpoints "
        "for it stay closed.",
    )
    max_lora_rank: Rank | None = arg(
        None,
        "LoRA adapters of at most this rank are taken by themselves. Unset: none. A run's own "
        "server has what its adapters need (vllm_lora).",
    )
    max_loras: Count = arg(1, "With max_lora_rank: adapters that run at a time.")
    startup_timeout_seconds: Positive = arg(600.0, "How long the start may take.")
    extra_args: list[str] = field(
        default_factory=list,
        metadata={"help": "Further arguments of `vllm serve`, as they are."},
    )

    def __post_init__(self) -> None:
        for name, kind in typing.get_type_hints(type(self)).items():
            if (value := fit(given := getattr(self, name), kind)) is MISFIT:
                raise ValueError(f"{name} must be {type_name(kind)}, got {given!r}")
            setattr(self, name, value)
        if self.devices is not None:
            self.devices = str(self.devices)
        if not self.host:
            raise ValueError("host must be an address, such as 127.0.0.1, got ''")
        check_ranges(self)
        for name, allowed in _ALLOWED.items():
            if (value := getattr(self, name)) not in allowed:
                words = ", ".join(str(one) for one in allowed if one is not None)
                raise ValueError(f"{name} must be one of {words}, got {value!r}")
        if self.sleep_level and self.weight_transfer == "none":
            raise ValueError(
                f"sleep_level is {self.sleep_level}, but weight_transfer is none, and with it the "
                "endpoints for sleeping stay closed; set sleep_level to 0, or weight_transfer to "
                "auto"
            )

    @property
    def num_devices(self) -> int:
        """How many GPUs it takes, if any."""
        return self.tensor_parallel_size * self.data_parallel_size

    @property
    def num_cpu_threads(self) -> int:
        """Threads that compute on a CPU; by default one for each core but one, at least one."""
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        return self.cpu_threads or max(cores - 1, 1)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "VLLMServerConfig":
        """The config that a recipe's mapping says; a ValueError also if a key is no field."""
        names = [one.name for one in fields(cls)]
        for key in settings:
            if key not in names:
                raise ValueError(unknown_name_message("setting of a vLLM server", key, names))
        return cls(**settings)
