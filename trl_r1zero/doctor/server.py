"""The vLLM server of a run: where it goes, and what is between it and the trainer."""

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from trl_r1zero.devices import Placement
from trl_r1zero.devices.facts import ipc_works
from trl_r1zero.generation.connections import is_loopback
from trl_r1zero.generation.server_placement import TrainerFacts, resolve_server
from trl_r1zero.generation.vllm_server_config import VLLMServerConfig

from .findings import Finding, ok, problem, warning
from .run import Run


@dataclass(frozen=True)
class Server:
    """The server that a run starts, with what its settings leave open decided."""

    config: VLLMServerConfig
    placement: Placement

    @property
    def shares_a_gpu(self) -> bool:
        """Whether it is on a trainer's."""
        return self.placement.shared and bool(self.placement.server)


def place_server(run: Run, trainer_bytes: int | None) -> Server:
    """Where the run's own server goes beside what a trainer keeps; errors as `resolve_server`."""
    cpu_build = "cpu" in (run.vllm or "").partition("+")[2]
    resolved, placement = resolve_server(
        VLLMServerConfig.from_settings(run.values["vllm_server"]),
        run.seen,
        TrainerFacts(
            num_trainers=run.launch.processes_here,
            trainer_on_cuda=run.on_cuda,
            server_on_cuda=bool(run.machine.devices) and (run.machine.assumed or not cpu_build),
            trainer_bytes=trainer_bytes or 0,
            samples_while_training=bool(run.values.get("one_step_off")),
            # On an assumed machine it is assumed to work.
            ipc_works=run.machine.assumed or ipc_works(run.environment),
        ),
    )
    return Server(resolved, placement)


def check_placement(run: Run, server: Server) -> Iterator[Finding]:
    """What follows from where the run's own server is."""
    placement = server.placement
    yield ok("server/placement", placement.in_words())
    if run.on_cuda and not placement.server:
        yield warning(
            "server/cpu_build",
            "there are GPUs, but vLLM's build for CPUs is installed: the server would sample on "
            "the CPU",
            do='install vLLM for GPUs: pip install -c constraints.txt -e ".[vllm]"',
        )
    if server.shares_a_gpu:
        yield ok(
            "server/one_gpu",
            "server and trainer share a GPU; NCCL, which refuses two processes on one device, is "
            f"not used: weights go by {placement.weight_transfer}",
        )
    if server.shares_a_gpu and server.config.sleep_level == 0:
        yield warning(
            "server/sleep",
            "the server keeps its memory while the trainer trains on the same GPU",
            do="leave sleep_level unset, unless one_step_off needs a server that is awake",
        )
    if run.launch.num_machines > 1:
        yield problem(
            "server/machines",
            f"the run starts a server on one of {run.launch.num_machines} machines",
            "one machine",
            "start a server by `trl-r1zero serve`, and give its address",
        )


def check_network(run: Run) -> Iterator[Finding]:
    """What is between the trainer and a server."""
    if not run.samples_with_vllm:
        return
    names = [name for name in run.environment if name.lower() in ("http_proxy", "all_proxy")]
    if names:
        words = f"{', '.join(sorted(names))} is set; requests to the vLLM server go past it"
        yield ok("server/proxies", words)
    if run.own_server:
        return
    host = str(run.values.get("vllm_server_base_url") or run.values["vllm_server_host"])
    if not is_loopback(urlsplit(host if "//" in host else f"//{host}").hostname or ""):
        yield warning(
            "server/remote",
            f"the server is on another machine ({host}): whoever reaches it, or the trainer's port "
            "for weights, can replace weights",
            "a network that is yours, and ports that are open between the two",
            "keep to one machine where you can: vllm_server: {}",
        )
    yield ok("server/other", f"the run connects to {host}; whether it answers is not looked at")
