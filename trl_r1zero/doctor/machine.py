"""Devices and processes: what is there, what each process gets, and what the launcher hides."""

from collections.abc import Iterator

from trl_r1zero.devices.usable import UnusableGPUError, check_accelerator
from trl_r1zero.devices.visible import VARIABLE

from .findings import Finding, ok, problem, warning
from .run import Run, split_names


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
    where = launch.path or f"no --accelerate_config, so {plain}"
    count = f"{number} process{'' if number == 1 else 'es'}"
    by = "" if kind == "NO" else f", {kind}"
    machines = f", {launch.num_machines} machines" if launch.num_machines > 1 else ""
    yield ok("machine/launch", f"{where}: {count}{by}{machines}")
    if number % launch.num_machines:
        yield problem(
            "machine/processes",
            f"{number} processes on {launch.num_machines} machines",
            "equally many on each",
            "change --num_processes",
        )
    if kind == "NO" and number > 1:
        yield problem(
            "machine/processes",
            f"distributed_type is NO, but {number} processes are wanted; accelerate would start "
            "one",
            "a distributed_type for several processes",
            "take accelerate_configs/multi_gpu.yaml, zero2.yaml, zero3.yaml or fsdp2.yaml",
        )
    rows, name = run.train_batch
    if rows is not None and rows % number:
        yield problem(
            "machine/processes",
            f"{number} processes cannot share {name} {rows} evenly",
            "a number of processes that divides it",
            f"change --num_processes, or {name} (which changes the algorithm)",
        )
    if kind == "FSDP" and run.samples and not run.samples_with_vllm:
        yield problem(
            "machine/sampling",
            "with FSDP transformers cannot sample, and the run has no vLLM server",
            "use_vllm: true",
            "set use_vllm: true and vllm_server: {}, or take zero3.yaml",
        )


def check_gpu_ids(run: Run, listed: str | None) -> Iterator[Finding]:
    """Whether the launcher hides devices, or takes others than the user's CUDA_VISIBLE_DEVICES."""
    ids, visible = run.launch.gpu_ids, run.machine.visible.names
    if ids is None or run.launch.use_cpu or not run.machine.devices:
        return
    where, launchers = "machine/gpu_ids", f"the launcher's gpu_ids ({ids})"
    advice = f"remove gpu_ids from {run.launch.path}; {VARIABLE} says which devices a run may use"
    if listed is not None and split_names(listed) != split_names(ids):
        yield problem(
            where,
            f"{launchers} replaces {VARIABLE}={listed}: the run would be on devices that may be "
            "somebody else's",
            "one place that names devices",
            advice,
        )
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
        yield problem(
            "machine/trainers",
            f"{wanted} trainer processes want a GPU each, but {seen.visible.in_words()}",
            f"{wanted} devices",
            "start fewer (--num_processes), or show the run more devices",
        )
        return
    places = [
        f"process {number} on GPU {number} ({seen.visible.names[number]} on this machine)"
        for number in range(wanted)
    ]
    yield ok("machine/trainers", "; ".join(places))
    if run.launch.path is None and len(seen.devices) > 1 and wanted == 1:
        free = len(seen.devices) - 1
        found = f"one process uses GPU 0 alone; {free} more are free for a server"
        yield ok("machine/single_process", found)
