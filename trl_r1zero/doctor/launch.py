"""How `accelerate launch` would start the processes of a run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from trl_r1zero.devices import MachineFacts, VisibleDevices
from trl_r1zero.devices.training_setup import sharding_of
from trl_r1zero.devices.visible import VARIABLE

from .findings import Finding, ok, problem, warning


@dataclass(frozen=True)
class Launch:
    """What a file of accelerate_configs says; without one, a plain `python`.

    Attributes:
        path: The file; None without one.
        num_processes: Trainer processes over all machines.
        num_machines: Machines.
        distributed_type: accelerate's name of the way to run several processes.
        zero_stage: With DeepSpeed.
        use_cpu: Whether they compute on CPUs.
        gpu_ids: The devices that the launcher shows to them, by physical numbers; None: all.
    """

    path: str | None = None
    num_processes: int = 1
    num_machines: int = 1
    distributed_type: str = "NO"
    zero_stage: int | None = None
    use_cpu: bool = False
    gpu_ids: str | None = None

    @property
    def processes_here(self) -> int:
        """Of one machine."""
        return max(1, self.num_processes // self.num_machines)

    @property
    def sharding(self) -> str:
        """As `TrainingSetup` calls it."""
        return sharding_of(self.distributed_type, self.zero_stage)


def read_launch(path: str | None, num_processes: int | None) -> Launch:
    """What a launch with this file, and `--num_processes`, does.

    Raises:
        ValueError: There is no such file, or it is not one of accelerate's.
    """
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"--num_processes is {num_processes}; give 1 or more")
    if path is None:
        return Launch(
            num_processes=num_processes or 1,
            distributed_type="MULTI_GPU" if (num_processes or 1) > 1 else "NO",
        )
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"--accelerate_config {path}: {error}") from None
    if not isinstance(content, dict) or "distributed_type" not in content:
        raise ValueError(
            f"--accelerate_config {path}: there is no distributed_type in it; give a file as in "
            "accelerate_configs/"
        )
    for name in ("num_processes", "num_machines"):
        if not isinstance(content.get(name, 1), int):
            raise ValueError(
                f"--accelerate_config {path}: {name} must be a whole number, got {content[name]!r}"
            )
    gpu_ids = content.get("gpu_ids")
    return Launch(
        path=path,
        num_processes=num_processes or content.get("num_processes") or 1,
        num_machines=content.get("num_machines") or 1,
        distributed_type=str(content["distributed_type"]),
        zero_stage=_zero_stage(content),
        use_cpu=bool(content.get("use_cpu")),
        gpu_ids=None if gpu_ids in (None, "all") else str(gpu_ids),
    )


def _zero_stage(content: dict[str, Any]) -> int | None:
    settings = content.get("deepspeed_config")
    return settings.get("zero_stage") if isinstance(settings, dict) else None


def seen_by_trainers(machine: MachineFacts, launch: Launch) -> MachineFacts:
    """The machine, with no other devices than those that the launcher shows."""
    if launch.gpu_ids is None or launch.use_cpu:
        return machine
    # Both are the machine's own numbers, or UUIDs.
    visible = machine.visible.names
    names = tuple(name for name in _names(launch.gpu_ids) if name in visible)
    devices = tuple(machine.devices[visible.index(name)] for name in names)
    return replace(machine, devices=devices, visible=VisibleDevices(names, launch.gpu_ids))


def _names(devices: str) -> list[str]:
    return [name.strip() for name in devices.split(",") if name.strip()]


def check_gpu_ids(launch: Launch, machine: MachineFacts, listed: str | None) -> list[Finding]:
    """Whether the launcher takes devices away, or others than the user meant.

    Args:
        launch: The launch.
        machine: With all devices that the user made visible.
        listed: CUDA_VISIBLE_DEVICES as the user has set it; None if it is unset.
    """
    if launch.gpu_ids is None or launch.use_cpu or not machine.devices:
        return []
    advice = f"remove gpu_ids from {launch.path}; {VARIABLE} says which devices a run may use"
    if listed is not None and _names(listed) != _names(launch.gpu_ids):
        return [
            problem(
                "machine",
                "gpu_ids",
                f"the launcher's gpu_ids ({launch.gpu_ids}) replaces {VARIABLE}={listed}: the run "
                "would be on devices that may be somebody else's",
                "one place that names devices",
                advice,
            )
        ]
    seen = len(seen_by_trainers(machine, launch).devices)
    if not seen:
        return [
            problem(
                "machine",
                "gpu_ids",
                f"the launcher's gpu_ids ({launch.gpu_ids}) are no devices of this machine, which "
                f"has {', '.join(machine.visible.names)}",
                "devices that are there",
                advice,
            )
        ]
    if seen < len(machine.devices):
        return [
            warning(
                "machine",
                "gpu_ids",
                f"the launcher's gpu_ids ({launch.gpu_ids}) hides the other devices of this "
                "machine, from a server too",
                "",
                advice,
            )
        ]
    return []


def check_processes(
    launch: Launch, rows: int | None, name: str, samples_itself: bool
) -> list[Finding]:
    """Whether the processes can share the work.

    Args:
        launch: The launch.
        rows: Of a train batch; None where it is not known.
        name: The key that says so.
        samples_itself: Whether the run samples with transformers.
    """
    kind = launch.distributed_type
    plain = "plain python" if launch.num_processes == 1 else "accelerate's defaults"
    where = launch.path or f"no --accelerate_config, so {plain}"
    count = "1 process" if launch.num_processes == 1 else f"{launch.num_processes} processes"
    by = "" if kind == "NO" else f", {kind}"
    machines = f", {launch.num_machines} machines" if launch.num_machines > 1 else ""
    findings = [ok("machine", "launch", f"{where}: {count}{by}{machines}")]
    if launch.num_processes % launch.num_machines:
        findings.append(
            problem(
                "machine",
                "processes",
                f"{launch.num_processes} processes on {launch.num_machines} machines",
                "equally many on each",
                "change --num_processes",
            )
        )
    if kind == "NO" and launch.num_processes > 1:
        findings.append(
            problem(
                "machine",
                "processes",
                f"distributed_type is NO, but {launch.num_processes} processes are wanted; "
                "accelerate would start one",
                "a distributed_type for several processes",
                "take accelerate_configs/multi_gpu.yaml, zero2.yaml, zero3.yaml or fsdp2.yaml",
            )
        )
    if rows is not None and rows % launch.num_processes:
        findings.append(
            problem(
                "machine",
                "processes",
                f"{launch.num_processes} processes cannot share {name} {rows} evenly",
                "a number of processes that divides it",
                f"change --num_processes, or {name} (which changes the algorithm)",
            )
        )
    if kind == "FSDP" and samples_itself:
        findings.append(
            problem(
                "machine",
                "sampling",
                "with FSDP transformers cannot sample, and the run has no vLLM server",
                "use_vllm: true",
                "set use_vllm: true and vllm_server: {}, or take zero3.yaml",
            )
        )
    return findings
