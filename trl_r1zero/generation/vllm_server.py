"""A `vllm serve` of one's own: its flags, its start, and an end that leaves nothing behind.

The flags are what TRL's server mode needs: for new weights, the development endpoints
(`VLLM_SERVER_DEV_MODE`) and a weight-transfer engine; log-probabilities of the distribution that
was sampled from; the request's sampling parameters alone, not those of the model's generation
config.
"""

import atexit
import difflib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import typing
import warnings
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from tqdm import tqdm

from . import vllm_log
from .weight_transfer import is_loopback

WEIGHT_TRANSFERS = ("auto", "nccl", "gloo", "none")
_PLUGIN = "trl_r1zero_gloo"  # the entry point of `vllm_plugin` in pyproject.toml
_STOP_SECONDS = 20.0
_MAX_PORTS = 3

# Set by launchers for the training processes; vLLM would take them for its own.
_LAUNCHER_VARIABLES = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|"
    r"(TORCHELASTIC|ACCELERATE|FSDP)_.*"
)


class VLLMServerError(RuntimeError):
    """A vLLM server does not start, does not answer, or refuses."""


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class VLLMServerConfig:
    """How a server is started.

    Raises:
        ValueError: A value is of the wrong type or outside its range.
    """

    host: str = _setting(
        "127.0.0.1",
        "Address to listen on. Whoever reaches it can replace the weights: keep it to this machine "
        "unless the trainer is on another one and the network is yours.",
    )
    port: int | None = _setting(None, "Port to listen on. Unset: a free one.")
    dtype: str = _setting("auto", "What to compute in: auto (the model's own), bfloat16 ...")
    max_model_len: int | None = _setting(
        None, "Tokens of a prompt and its completion at most. Unset: what the model allows."
    )
    max_num_seqs: int | None = _setting(None, "Completions at a time. Unset: vLLM's choice.")
    gpu_memory_utilization: float = _setting(
        0.9, "On a GPU: share of its memory that the server takes."
    )
    tensor_parallel_size: int = _setting(1, "GPUs that share the model.")
    data_parallel_size: int = _setting(1, "Copies of the model.")
    devices: str | None = _setting(
        None, "CUDA_VISIBLE_DEVICES of the server, such as '1'. Unset: the environment's."
    )
    cpu_kv_cache_gb: float = _setting(1.0, "On a CPU: GiB for the key-value cache.")
    cpu_threads: int | None = _setting(
        None, "On a CPU: threads that compute. Unset: all cores but one, which schedules."
    )
    enforce_eager: bool | None = _setting(
        None, "No CUDA graphs, no compilation. Unset: so on a CPU, not so on a GPU."
    )
    weight_transfer: str = _setting(
        "auto",
        f"How new weights arrive: {', '.join(WEIGHT_TRANSFERS)}. auto: nccl on GPUs, gloo on CPUs. "
        "none: never, and the endpoints for it stay closed.",
    )
    startup_timeout_seconds: float = _setting(600.0, "How long the start may take.")
    extra_args: list[str] = field(
        default_factory=list,
        metadata={"help": "Further arguments of `vllm serve`, as they are."},
    )

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            _check_type(name, getattr(self, name), hint)
        at_least_one = (
            "max_model_len",
            "max_num_seqs",
            "tensor_parallel_size",
            "data_parallel_size",
            "cpu_threads",
        )
        for name in at_least_one:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ValueError(f"port must be between 1 and 65535, got {self.port}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization}"
            )
        for name in ("cpu_kv_cache_gb", "startup_timeout_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.weight_transfer not in WEIGHT_TRANSFERS:
            raise ValueError(
                f"weight_transfer must be one of {', '.join(WEIGHT_TRANSFERS)}, got "
                f"{self.weight_transfer!r}"
            )

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> "VLLMServerConfig":
        """The config that a recipe's mapping says.

        Raises:
            ValueError: There is a key that is no field, or a value as above.
        """
        names = [f.name for f in fields(cls)]
        for key in settings:
            if key not in names:
                nearest = difflib.get_close_matches(str(key), names, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"they are {names}"
                raise ValueError(f"{key!r} is no setting of a vLLM server; {hint}")
        return cls(**settings)


class VLLMServer:
    """A vLLM server that ends with this process, however that ends.

    Args:
        model: Path or hub id.
        config: The settings.
        log_path: Where the server's output goes; by default to a file that is removed at the end,
            unless the server fails.
    """

    def __init__(
        self, model: str, config: VLLMServerConfig | None = None, log_path: Path | None = None
    ) -> None:
        self.model = model
        self.config = config or VLLMServerConfig()
        self._keeps_log = log_path is not None
        if log_path is None:
            handle, name = tempfile.mkstemp(prefix="vllm_server_", suffix=".log")
            os.close(handle)
            log_path = Path(name)
        self.log_path = log_path
        self.port = self.config.port
        self._log_start = 0
        self._supervisor: subprocess.Popen[bytes] | None = None
        atexit.register(self.stop)

    def __enter__(self) -> "VLLMServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def base_url(self) -> str:
        """Such as `http://127.0.0.1:8000`; known once the server is started."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.config.host, self.config.host)
        return f"http://{host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process above all of the server's."""
        return None if self._supervisor is None else self._supervisor.pid

    def is_alive(self) -> bool:
        return self._supervisor is not None and self._supervisor.poll() is None

    def start(self) -> None:
        """Start the server, and return once it is healthy.

        Raises:
            VLLMServerError: vLLM is not installed; or the server dies, or takes too long.
        """
        if self.is_alive():
            return
        is_cpu_build()  # an error if there is no vLLM at all
        if not is_loopback(self.config.host) and self.config.weight_transfer != "none":
            warnings.warn(
                f"the vLLM server listens on {self.config.host}: whoever reaches it can replace "
                "its weights (/init_weight_transfer_engine, /update_weights) and stop it (/pause); "
                "keep it to 127.0.0.1, or to a network that is yours alone",
                stacklevel=2,
            )
        for attempt in range(1, _MAX_PORTS + 1):
            if self.config.port is None:
                self.port = _free_port(self.config.host)
            self._spawn()
            try:
                return self._wait_until_healthy()
            except VLLMServerError as error:
                taken = "Address already in use" in str(error)
                if not (taken and self.config.port is None and attempt < _MAX_PORTS):
                    raise

    def stop(self) -> None:
        """End the server and all of its processes; harmless when repeated."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            return
        assert supervisor.stdin is not None
        supervisor.stdin.close()  # what the supervisor waits for
        try:
            code = supervisor.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            code = supervisor.wait()
        if not self._keeps_log and code == 0:
            self.log_path.unlink(missing_ok=True)

    def first_error(self) -> str | None:
        """The first error in the log of the newest start: the others are its consequences."""
        return vllm_log.first_error(self._log())

    def command(self) -> list[str]:
        """The command line of `vllm serve`."""
        config, on_cpu = self.config, is_cpu_build()
        flags: dict[str, Any] = {
            "host": config.host,
            "port": self.port,
            "dtype": config.dtype,
            "generation-config": "vllm",
            "logprobs-mode": "processed_logprobs",
            "max-logprobs": -1,
            "tensor-parallel-size": config.tensor_parallel_size,
            "data-parallel-size": config.data_parallel_size,
        }
        if config.max_model_len is not None:
            flags["max-model-len"] = config.max_model_len
        if config.max_num_seqs is not None:
            flags["max-num-seqs"] = config.max_num_seqs
        if not on_cpu:
            flags["gpu-memory-utilization"] = config.gpu_memory_utilization
        if self.weight_transfer is not None:
            flags["weight-transfer-config"] = json.dumps({"backend": self.weight_transfer})
        words = [f"--{name}={value}" for name, value in flags.items()]
        words.append("--disable-uvicorn-access-log")
        if on_cpu if config.enforce_eager is None else config.enforce_eager:
            words.append("--enforce-eager")
        # -P: the working directory is no place to import from.
        vllm = [sys.executable, "-P", "-m", "vllm.entrypoints.cli.main", "serve", self.model]
        return [*vllm, *words, *config.extra_args]

    def environment(self) -> dict[str, str]:
        """The server's environment: this process's, without what a launcher set for trainers."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not _LAUNCHER_VARIABLES.fullmatch(name)
        }
        environment["VLLM_NO_USAGE_STATS"] = "1"
        if self.weight_transfer is not None:
            environment["VLLM_SERVER_DEV_MODE"] = "1"
            plugins = environment.get("VLLM_PLUGINS")
            if plugins is not None and _PLUGIN not in plugins.split(","):
                environment["VLLM_PLUGINS"] = f"{plugins},{_PLUGIN}".lstrip(",")
        if self.config.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.config.devices
        if is_cpu_build():
            threads = self.config.cpu_threads or max((os.cpu_count() or 1) - 1, 1)
            environment["VLLM_CPU_KVCACHE_SPACE"] = f"{self.config.cpu_kv_cache_gb:g}"
            environment["OMP_NUM_THREADS"] = str(threads)
            # Not tied to cores: a trainer, or a second server, works on the same ones.
            environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        return environment

    @property
    def weight_transfer(self) -> str | None:
        """The weight-transfer backend, None for none."""
        if self.config.weight_transfer == "auto":
            return "gloo" if is_cpu_build() else "nccl"
        return None if self.config.weight_transfer == "none" else self.config.weight_transfer

    def _spawn(self) -> None:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        supervisor = Path(__file__).with_name("vllm_supervisor.py")
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", str(supervisor), *self.command()],
                env=self.environment(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is this process's to handle
            )

    def _wait_until_healthy(self) -> None:
        start = time.monotonic()
        try:
            with tqdm(bar_format="{desc} {elapsed}", leave=False, disable=None) as progress:
                while not self._is_healthy():
                    waited = time.monotonic() - start
                    if not self.is_alive():
                        raise VLLMServerError(self._failure("did not start"))
                    if waited > self.config.startup_timeout_seconds:
                        raise VLLMServerError(self._failure(f"was not ready after {waited:.0f} s"))
                    progress.set_description_str(f"vLLM server: {vllm_log.gist(self._log())}")
                    time.sleep(0.25)
        except BaseException:
            self.stop()
            raise

    def _is_healthy(self) -> bool:
        opener = build_opener(ProxyHandler({}))  # no proxy stands in between
        try:
            with opener.open(f"{self.base_url}/health", timeout=5) as response:
                return bool(response.status == 200)
        except (URLError, OSError):
            return False

    def _failure(self, what: str) -> str:
        error = self.first_error() or "its log names no error"
        advice = vllm_log.hint(error)
        self._keeps_log = True
        lines = [f"the vLLM server for {self.model} {what}: {error}"]
        lines += [advice] if advice else []
        return "\n".join([*lines, f"(its log: {self.log_path})"])

    def _log(self) -> str:
        """What the server has said since its newest start."""
        with self.log_path.open(encoding="utf-8", errors="replace") as log:
            log.seek(self._log_start)
            return log.read()


def is_cpu_build() -> bool:
    """Whether the installed vLLM is the one for CPUs, by its metadata (importing it takes seconds).

    Raises:
        VLLMServerError: There is none.
    """
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError as error:
        raise VLLMServerError(
            "vLLM is not installed; on a machine with a GPU: pip install -c constraints.txt -e "
            '".[vllm]", on one without: make vllm'
        ) from error


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _check_type(name: str, value: Any, hint: Any) -> None:
    allowed = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
    kinds = tuple(typing.get_origin(kind) or kind for kind in allowed)
    fits = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
    if not fits or (isinstance(value, bool) and bool not in kinds):
        words = " or ".join("none" if k is type(None) else k.__name__ for k in kinds)
        raise ValueError(f"{name} must be {words}, got {value!r}")
