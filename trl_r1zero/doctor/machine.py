"""Devices, processes and the server: what is there, who gets what, what is in between."""

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from trl_r1zero.devices import Placement
from trl_r1zero.devices.facts import UnusableGPUError, check_accelerator, ipc_works
from trl_r1zero.devices.visible import VARIABLE, device_names
from trl_r1zero.generation.connections import is_loopback
from trl_r1zero.generation.server_placement import TrainerFacts, resolve_server
from trl_r1zero.generation.vllm_server_config import VLLMServerConfig

from .findings import Finding, ok, problem, warning
from .run import Run


def check_machine(run: Run) -> Finding:
    """Whether there are devices, and torch can use them."""
    machine, words = run.machine, run.machine.in_words()
    if machine.assumed:
        return ok("machine/devices", f"assumed: {words}")
    if machine.devices:
        driver = f"driver {machine.driver or 'not known'}, torch for CUDA {machine.torch_cuda}"
        return ok("machine/devices", f"{words}; {driver}; {machine.visible.in_words()}")
    if run.use_cpu:
        return ok("machine/devices", "no GPU is asked for: all computes on the CPU")
    try:
        warns = check_accelerator(machine, use_cpu=False)
    except UnusableGPUError as error:
        return problem("machine/driver", str(error), "a GPU that torch can use")
    if warns is not None:
        return warning("machine/driver", warns, "torch for CUDA")
    if machine.other_accelerator:
        return ok("machine/devices", f"no CUDA, but {machine.other_accelerator}")
    advice = 'for a machine that is not here, add --assume "2x80GB"'
    return warning("machine/devices", "there is no GPU: all computes on the CPU", do=advice)


def check_processes(run: Run) -> Iterator[Finding]:
    """Whether the processes can share the work."""
    launch, kind, number = run.launch, run.launch.distributed_type, run.launch.num_processes
    plain = "plain python" if number == 1 else "accelerate's defaults"
    start = launch.path or f"no --accelerate_config, so {plain}"
    count = f"{number} process{'' if number == 1 else 'es'}"
    by = "" if kind == "NO" else f", {kind}"
    machines = f", {launch.num_machines} machines" if launch.num_machines > 1 else ""
    yield ok("machine/launch", f"{start}: {count}{by}{machines}")
    where = "machine/processes"
    if number % launch.num_machines:
        found = f"{number} processes on {launch.num_machines} machines"
        yield problem(where, found, "equally many on each", "change --num_processes")
    if kind == "NO" and number > 1:
        found = (
            f"distributed_type is NO, but {number} processes are wanted; accelerate would start one"
        )
        advice = "take accelerate_configs/multi_gpu.yaml, zero2.yaml, zero3.yaml or fsdp2.yaml"
        yield problem(where, found, "a distributed_type for several processes", advice)
    rows, name = run.train_batch
    if rows is not None and rows % number:
        found = f"{number} processes cannot share {name} {rows} evenly"
        advice = f"change --num_processes, or {name} (which changes the algorithm)"
        yield problem(where, found, "a number of processes that divides it", advice)
    if kind == "FSDP" and run.samples and not run.samples_with_vllm:
        found = "with FSDP transformers cannot sample, and the run has no vLLM server"
        advice = "set use_vllm: true and vllm_server: {}, or take zero3.yaml"
        yield problem("machine/sampling", found, "use_vllm: true", advice)


def check_gpu_ids(run: Run, listed: str | None) -> Iterator[Finding]:
    """Whether the launcher hides devices, or takes others than the user's CUDA_VISIBLE_DEVICES."""
    ids, visible = run.launch.gpu_ids, run.machine.visible.names
    if ids is None or run.launch.use_cpu or not run.machine.devices:
        return
    where, launchers = "machine/gpu_ids", f"the launcher's gpu_ids ({ids})"
    advice = f"remove gpu_ids from {run.launch.path}; {VARIABLE} says which devices a run may use"
    if listed is not None and device_names(listed) != device_names(ids):
        found = (
            f"{launchers} replaces {VARIABLE}={listed}: the run would be on devices that may be "
            "somebody else's"
        )
        yield problem(where, found, "one place that names devices", advice)
    elif not run.seen.devices:
        found = f"{launchers} are no devices of this machine, which has {', '.join(visible)}"
        yield problem(where, found, "devices that are there", advice)
    elif len(run.seen.devices) < len(run.machine.devices):
        found = f"{launchers} hides the other devices of this machine, from a server too"
        yield warning(where, found, do=advice)


def check_trainers(run: Run) -> Iterator[Finding]:
    """Whether each process gets a device, and which."""
    if not run.on_cuda:
        return
    wanted, seen = run.launch.processes_here, run.seen
    if wanted > len(seen.devices):
        found = f"{wanted} trainer processes want a GPU each, but {seen.visible.in_words()}"
        advice = "start fewer (--num_processes), or show the run more devices"
        yield problem("machine/trainers", found, f"{wanted} devices", advice)
        return
    places = [
        f"process {number} on GPU {number} ({name} on this machine)"
        for number, name in enumerate(seen.visible.names[:wanted])
    ]
    yield ok("machine/trainers", "; ".join(places))
    if run.launch.path is None and len(seen.devices) > 1 and wanted == 1:
        free = len(seen.devices) - 1
        found = f"one process uses GPU 0 alone; {free} more are free for a server"
        yield ok("machine/single_process", found)


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
            samples_while_training=any(map(run.values.get, ("max_staleness", "one_step_off"))),
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
        found = (
            "there are GPUs, but vLLM's build for CPUs is installed: the server would sample on "
            "the CPU"
        )
        advice = 'install vLLM for GPUs: pip install -c constraints.txt -e ".[vllm]"'
        yield warning("server/cpu_build", found, do=advice)
    if server.shares_a_gpu:
        found = (
            "server and trainer share a GPU; NCCL, which refuses two processes on one device, is "
            f"not used: weights go by {placement.weight_transfer}"
        )
        yield ok("server/one_gpu", found)
    if server.shares_a_gpu and server.config.sleep_level == 0:
        found = "the server keeps its memory while the trainer trains on the same GPU"
        advice = "leave sleep_level unset, unless max_staleness needs a server that is awake"
        yield warning("server/sleep", found, do=advice)
    if run.launch.num_machines > 1:
        found = f"the run starts a server on one of {run.launch.num_machines} machines"
        advice = "start a server by `trl-r1zero serve`, and give its address"
        yield problem("server/machines", found, "one machine", advice)


def check_network(run: Run) -> Iterator[Finding]:
    """What is between the trainer and a server."""
    if not run.samples_with_vllm:
        return
    if names := [name for name in run.environment if name.lower() in ("http_proxy", "all_proxy")]:
        found = f"{', '.join(sorted(names))} is set; requests to the vLLM server go past it"
        yield ok("server/proxies", found)
    if run.own_server:
        return
    given = run.values.get("vllm_server_base_url") or run.values["vllm_server_host"]
    hosts = given if isinstance(given, list) else [given]
    host = ", ".join(map(str, hosts))
    parts = [urlsplit(one if "//" in one else f"//{one}") for one in map(str, hosts)]
    if not all(is_loopback(part.hostname or "") for part in parts):
        found = (
            f"the server is on another machine ({host}): whoever reaches it, or the trainer's port "
            "for weights, can replace weights"
        )
        needed = "a network that is yours, and ports that are open between the two"
        advice = "keep to one machine where you can: vllm_server: {}"
        yield warning("server/remote", found, needed, advice)
    yield ok("server/other", f"the run connects to {host}; whether it answers is not checked")
