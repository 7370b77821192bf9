"""Devices: what is there, what each process and the server get, and what stands in between."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from trl_r1zero.devices import MachineFacts, Placement
from trl_r1zero.devices.ipc import ipc_works, platform_here
from trl_r1zero.devices.usable import UnusableGPUError, check_accelerator
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


def check_machine(machine: MachineFacts, *, cpu_is_meant: bool) -> list[Finding]:
    """Whether there are devices, and torch can use them."""
    if machine.assumed:
        return [ok("machine", "devices", f"assumed: {machine.in_words()}")]
    if machine.devices:
        driver = machine.driver or "not known"
        facts = f"{machine.in_words()}; driver {driver}, torch for CUDA {machine.torch_cuda}"
        return [ok("machine", "devices", f"{facts}; {machine.visible.in_words()}")]
    if cpu_is_meant:
        return [ok("machine", "devices", "no GPU is asked for: all computes on the CPU")]
    try:
        warns = check_accelerator(machine, use_cpu=False)
    except UnusableGPUError as error:
        return [problem("machine", "driver", str(error), "a GPU that torch can use")]
    if warns is not None:
        return [warning("machine", "driver", warns, "torch for CUDA")]
    if machine.other_accelerator:
        return [ok("machine", "devices", f"no CUDA, but {machine.other_accelerator}")]
    return [
        warning(
            "machine",
            "devices",
            "there is no GPU: all computes on the CPU",
            "",
            'for a machine that is not here, add --assume "2x80GB"',
        )
    ]


def check_trainers(run: Run) -> list[Finding]:
    """Whether each process gets a device, and which."""
    if not run.on_cuda:
        return []
    wanted, seen = run.launch.processes_here, run.seen
    if wanted > len(seen.devices):
        return [
            problem(
                "machine",
                "trainers",
                f"{wanted} trainer processes want a GPU each, but {seen.visible.in_words()}",
                f"{wanted} devices",
                "start fewer (--num_processes), or show the run more devices",
            )
        ]
    places = [
        f"process {number} on GPU {number} ({seen.visible.names[number]} on this machine)"
        for number in range(wanted)
    ]
    findings = [ok("machine", "trainers", "; ".join(places))]
    if run.launch.path is None and len(seen.devices) > 1 and wanted == 1:
        findings.append(
            ok(
                "machine",
                "single_process",
                f"one process uses GPU 0 alone; {len(seen.devices) - 1} more are free for a server",
            )
        )
    return findings


def place_server(run: Run, trainer_bytes: int | None) -> tuple[Server | None, list[Finding]]:
    """Where the run's own server goes; None where that cannot be.

    Args:
        run: One that has a server.
        trainer_bytes: What a trainer keeps while the server samples; None where not known.
    """
    config = VLLMServerConfig.from_settings(run.values["vllm_server"])
    try:
        resolved, placement = resolve_server(
            config,
            run.seen,
            TrainerFacts(
                num_trainers=run.launch.processes_here,
                trainer_on_cuda=run.on_cuda,
                server_on_cuda=run.server_on_cuda,
                trainer_bytes=trainer_bytes or 0,
                samples_while_training=bool(run.values.get("one_step_off")),
                # An assumed machine is taken for one where it works.
                ipc_works=run.machine.assumed or ipc_works(platform_here(run.environment)),
            ),
        )
    except ValueError as error:
        found, _, advice = str(error).partition("; ")
        return None, [problem("server", "placement", found, "", advice)]
    findings = [ok("server", "placement", placement.in_words())]
    if run.on_cuda and not placement.server:
        findings.append(
            warning(
                "server",
                "cpu_build",
                "there are GPUs, but vLLM's build for CPUs is installed: the server would sample "
                "on the CPU",
                "",
                'install vLLM for GPUs: pip install -c constraints.txt -e ".[vllm]"',
            )
        )
    if placement.shared and placement.server:
        findings.append(
            ok(
                "server",
                "one_gpu",
                "server and trainer share a GPU; NCCL, which refuses two processes on one device, "
                f"is not used: weights go by {placement.weight_transfer}",
            )
        )
    if placement.shared and placement.server and resolved.sleep_level == 0:
        findings.append(
            warning(
                "server",
                "sleep",
                "the server keeps its memory while the trainer trains on the same GPU",
                "",
                "leave sleep_level unset, unless one_step_off needs a server that is awake",
            )
        )
    if run.launch.num_machines > 1:
        findings.append(
            problem(
                "server",
                "machines",
                f"the run starts a server on one of {run.launch.num_machines} machines",
                "one machine",
                "start a server by `trl-r1zero serve`, and give its address",
            )
        )
    return Server(resolved, placement), findings


def check_network(run: Run) -> list[Finding]:
    """What stands between the trainer and a server."""
    if not (run.own_server or run.other_server):
        return []
    findings = _check_proxies(run.environment)
    host = run.other_server
    if host is None:
        return findings
    if not is_loopback(urlsplit(host if "//" in host else f"//{host}").hostname or ""):
        findings.append(
            warning(
                "server",
                "remote",
                f"the server is on another machine ({host}): whoever reaches it, or the trainer's "
                "port for weights, can replace weights",
                "a network that is yours, and ports that are open between the two",
                "keep to one machine where you can: vllm_server: {}",
            )
        )
    findings.append(
        ok("server", "other", f"the run connects to {host}; whether it answers is not looked at")
    )
    return findings


def _check_proxies(environment: Mapping[str, str]) -> list[Finding]:
    names = [name for name in environment if name.lower() in ("http_proxy", "all_proxy")]
    if not names:
        return []
    return [
        ok(
            "server",
            "proxies",
            f"{', '.join(sorted(names))} is set; requests to the vLLM server go past it",
        )
    ]
