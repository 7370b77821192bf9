"""A `vllm serve` of one's own: its start, and an end that leaves nothing behind.

Its flags are those that training needs (`vllm_compat`): the development endpoints and a
weight-transfer engine, for new weights; log-probabilities of the distribution that was sampled
from; the sampling parameters of the request alone, not those of the model's generation config.
"""

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from tqdm import tqdm

from .connections import is_healthy, is_loopback
from .vllm_compat import PROCESS_PREFIX, SOCKETS_VARIABLE, serve_command, serve_environment
from .vllm_log import first_error, gist, hint
from .vllm_server_config import VLLMServerConfig

__all__ = ["VLLMServer", "VLLMServerConfig", "VLLMServerError", "installed_vllm", "is_cpu_build"]

_MAX_PORTS = 3
_POLL_SECONDS = 0.25
_PLAIN_PROGRESS_SECONDS = 15.0
# From SIGTERM to SIGKILL: an idle server on a CPU takes 3 to 5.
_GRACE_SECONDS = 10.0


class VLLMServerError(RuntimeError):
    """A vLLM server does not start, does not answer, or refuses."""


class _PortTaken(VLLMServerError):
    """Another program has the port."""


class VLLMServer:
    """A vLLM server on this machine that ends with this process, however that ends.

    Args:
        model: Path of a model's folder, or a hub id.
        config: The settings; the defaults if None.
        log_path: The server's output is appended here; by default to a temporary file, which is
            kept if the server failed.

    Attributes:
        log_path, port: None before the first start where none was given.
    """

    def __init__(
        self, model: str, config: VLLMServerConfig | None = None, log_path: Path | None = None
    ) -> None:
        self.model = model
        self.config = config or VLLMServerConfig()
        self.log_path = log_path
        self.port = self.config.port
        self._has_temporary_log = log_path is None
        self._log_start = 0  # of the newest start, in bytes
        self._failed = False
        self._owner = os.getpid()
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None

    def __enter__(self) -> "VLLMServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def base_url(self) -> str:
        """Such as `http://127.0.0.1:8000`, to be reached from this machine."""
        if self.port is None:
            raise VLLMServerError("the vLLM server has no port yet; call start() first")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.config.host, self.config.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The server's own process, above its engine and workers; None if it does not run."""
        return self._pid if self.is_alive() else None

    @property
    def weight_transfer(self) -> str | None:
        """How weights come, `nccl`, `ipc` or `gloo`; None for never. A VLLMServerError if vLLM is
        not installed, or its build does not have that way."""
        on_cpu, wanted = is_cpu_build(), self.config.weight_transfer
        if wanted == "nccl" and on_cpu:
            raise VLLMServerError(
                "weight_transfer is nccl, but vLLM's build for CPUs is installed, and NCCL needs "
                "GPUs; set gloo or auto"
            )
        if wanted == "auto":
            return "gloo" if on_cpu else "nccl"
        return None if wanted == "none" else wanted

    def is_alive(self) -> bool:
        """Whether its process runs; it may be starting, or unwell."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def is_healthy(self, timeout_seconds: float = 5.0) -> bool:
        """Whether it says that it can take requests."""
        return self.port is not None and is_healthy(self.base_url, timeout_seconds)

    def start(self) -> None:
        """Start the server, and return once it is healthy; nothing happens if it runs.

        Raises:
            VLLMServerError: vLLM is not installed; there is no such model; the port is taken; or
                the server dies, or takes too long. The message has its first error.
        """
        if self.is_alive():
            return
        self.stop()  # what is left of one that died
        self._check_before_start()
        for attempts_left in reversed(range(_MAX_PORTS)):
            # Nobody else is given the port while the server, which binds it late, starts.
            with _reserved_port(self.config.host, self.config.port) as self.port:
                try:
                    return self._start_once()
                except _PortTaken:
                    if self.config.port is not None or not attempts_left:
                        raise

    def stop(self) -> None:
        """End the server and all of its processes; harmless when repeated."""
        if os.getpid() != self._owner:
            return  # a forked child has a copy of this object, but the server is not its own
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            return
        atexit.unregister(self.stop)
        self._failed = self._failed or supervisor.poll() is not None
        assert supervisor.stdin is not None
        supervisor.stdin.close()  # what the supervisor waits for
        try:
            supervisor.wait(2 * _GRACE_SECONDS + 5)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            supervisor.wait()
        if supervisor.returncode < 0 and self._pid is not None:
            # The supervisor was killed and could not clear up; the server has a group of its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)
        if self._has_temporary_log and self.log_path is not None and not self._failed:
            self.log_path.unlink(missing_ok=True)
            self.log_path.parent.rmdir()
            self.log_path = None

    def first_error(self) -> str | None:
        """The first error in the log of the newest start; most others follow from it."""
        return first_error(self._log())

    def command(self) -> list[str]:
        """The command line of `vllm serve`."""
        transfer = self.weight_transfer
        return serve_command(self.model, self.config, self.port, transfer, is_cpu_build())

    def environment(self) -> dict[str, str]:
        """The server's environment; a VLLMServerError also if there are no such devices."""
        try:
            return serve_environment(self.config, self.weight_transfer, is_cpu_build())
        except ValueError as error:
            raise VLLMServerError(str(error)) from None

    # The start

    def _check_before_start(self) -> None:
        if is_cpu_build() and self.config.devices is not None:
            raise VLLMServerError(
                f"devices is {self.config.devices!r}, but vLLM's build for CPUs is installed; "
                "remove the setting, or install vLLM for GPUs (docs/vllm.md)"
            )
        path = Path(self.model).expanduser()
        looks_like_a_path = self.model.count("/") > 1 or self.model.startswith((".", "/", "~"))
        if looks_like_a_path and not path.is_dir():
            raise VLLMServerError(
                f"there is no folder {self.model!r} to serve; give a model's folder, or a hub id"
            )
        if not is_loopback(self.config.host) and self.weight_transfer is not None:
            warnings.warn(
                f"the vLLM server listens on {self.config.host}: whoever reaches it can replace "
                "its weights (/init_weight_transfer_engine, /update_weights) and stop it (/pause); "
                "keep it to 127.0.0.1, or to a network that is yours alone",
                stacklevel=3,
            )

    def _start_once(self) -> None:
        try:
            self._spawn()
            self._wait_until_healthy()
        except BaseException as error:  # Ctrl-C too
            self._failed = self._failed or isinstance(error, VLLMServerError)
            self.stop()
            raise

    def _spawn(self) -> None:
        if self.log_path is None:
            self.log_path = Path(tempfile.mkdtemp(prefix="vllm_server_"), "server.log")
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        script = str(Path(__file__).with_name("vllm_supervisor.py"))
        supervisor = [sys.executable, "-I", script, str(os.getpid()), str(_GRACE_SECONDS)]
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._failed = False
            self._supervisor = subprocess.Popen(
                [*supervisor, PROCESS_PREFIX, SOCKETS_VARIABLE, *self.command()],
                env=self.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is this process's to handle
            )
        atexit.register(self.stop)
        assert self._supervisor.stdout is not None
        with self._supervisor.stdout as output:
            pid = output.readline()
        self._pid = int(pid) if pid else None

    def _wait_until_healthy(self) -> None:
        began = time.monotonic()
        next_line = 0.0
        with tqdm(bar_format="{desc}", leave=False, disable=None) as bar:
            while not (self.is_healthy() and self._has_port()):
                waited = time.monotonic() - began
                if not self.is_alive():
                    raise self._failure("did not start")
                if waited > self.config.startup_timeout_seconds:
                    raise self._failure(f"was not ready after {waited:.0f} s")
                text = f"vLLM server starts, {waited:.0f} s: {gist(self._log())}"
                if not bar.disable:
                    bar.set_description_str(text)
                elif waited >= next_line:  # no terminal: a line now and then
                    _say(text if next_line else f"vLLM server starts, its log is {self.log_path}")
                    next_line += _PLAIN_PROGRESS_SECONDS
                time.sleep(_POLL_SECONDS)
        _say(f"vLLM server ready at {self.base_url} after {time.monotonic() - began:.0f} s")

    def _has_port(self) -> bool:
        """Whether it is this server that listens: another one may answer at its address."""
        if self._pid is None:
            return False
        try:
            main = psutil.Process(self._pid)
            return any(
                connection.status == psutil.CONN_LISTEN and connection.laddr.port == self.port
                for process in (main, *main.children(recursive=True))
                for connection in process.net_connections("tcp")
            )
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True  # nobody may look; it is healthy

    def _failure(self, what: str) -> VLLMServerError:
        error = self.first_error() or "its log names no error"
        advice = hint(error)
        lines = [f"the vLLM server for {self.model} {what}: {error}", f"Its log: {self.log_path}"]
        if advice is not None:
            lines.insert(1, f"What to do: {advice}.")
        kind = _PortTaken if "Address already in use" in error else VLLMServerError
        return kind("\n".join(lines))

    def _log(self) -> str:
        if self.log_path is None or not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode("utf-8", "replace")


def is_cpu_build() -> bool:
    """Whether the installed vLLM is the one for CPUs; a VLLMServerError if there is none."""
    installed = installed_vllm()
    if installed is None:
        raise VLLMServerError(
            "vLLM is not installed. On a machine with a GPU: "
            'pip install -c constraints.txt -e ".[vllm]"; on one without: make vllm'
        )
    return "cpu" in installed.partition("+")[2]


def installed_vllm() -> str | None:
    """The version of the installed vLLM, such as `0.31.0+cpu`; None if there is none."""
    try:
        return version("vllm")  # to import it takes seconds
    except PackageNotFoundError:
        return None


@contextlib.contextmanager
def _reserved_port(host: str, port: int | None) -> Iterator[int]:
    """A free port, or the one that is wanted, kept from everybody but a server that binds it.

    On Linux a second socket may bind a port with SO_REUSEADDR, which vLLM sets, as long as the
    first one does not listen; no program that asks for any free port is given it.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((host, port or 0))
        except OSError as error:
            where = f"{host}, any port" if port is None else f"{host}, port {port}"
            raise VLLMServerError(
                f"a vLLM server cannot listen on {where}: {error.strerror or error}. Give another "
                "host or port; without a port it takes a free one"
            ) from error
        bound = int(holder.getsockname()[1])
        if sys.platform != "linux":
            holder.close()
        yield bound


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
