"""Places where runs run, each one at a time: groups of GPUs, or just places."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trl_r1zero.devices.visible import VARIABLE, VisibleDevices, parse_devices
from trl_r1zero.generation.vllm_server_config import VLLMServerConfig

from .experiment import Experiment, argument
from .plan import PlannedRun


@dataclass(frozen=True)
class Slot:
    """A place for one run: its number from 0, and its GPUs, counted from 0 within
    CUDA_VISIBLE_DEVICES (none: what the run finds)."""

    number: int
    gpus: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ",".join(self.gpus)

    def environment(self, visible: VisibleDevices) -> dict[str, str]:
        """What makes its GPUs, and no others, visible to a run.

        Raises:
            ValueError: They are not among `visible`.
        """
        if not self.gpus:
            return {}
        return {VARIABLE: visible.variable_for(parse_devices(str(self), visible))}


def make_slots(devices: Sequence[str], parallel: int, gpus: int) -> list[Slot]:
    """The slots of a command line: for each of `devices`, the GPUs of a run such as `0,1`, of which
    it takes so many; without devices so many places as runs are to be `parallel`.

    Raises:
        ValueError: A slot has another number of GPUs, or a GPU is in two of them.
    """
    if not devices:
        return [Slot(number) for number in range(parallel)]
    slots = [Slot(number, tuple(text.split(","))) for number, text in enumerate(devices)]
    flat = [gpu for slot in slots for gpu in slot.gpus]
    got = f"devices: got {' '.join(devices)}"
    if not all(gpu.isdigit() for gpu in flat):
        raise ValueError(f"{got}, expected indices such as 0,1 2,3")
    if len(set(flat)) < len(flat):
        raise ValueError(f"{got}, but a GPU belongs to one run at a time")
    for slot in slots:
        if len(slot.gpus) != max(gpus, 1):
            raise ValueError(
                f"devices: got {slot} for a run, but at this scale one takes {max(gpus, 1)}"
            )
    return slots


def launch_command(experiment: Experiment, run: PlannedRun, slot: Slot) -> list[str]:
    """What starts a run in a slot, whose GPUs are those that the run sees.

    A vLLM server of the run's own gets as many GPUs as the recipe gives it, the slot's last ones,
    and the trainer the others, one process each. In a slot of one GPU both are on it.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    config_file = experiment.scale.accelerate_config
    if config_file is not None:
        command += ["--config_file", str(experiment.beside(config_file))]
    arguments = list(run.arguments)
    if slot.gpus:
        server: dict[str, Any] | None = run.recipe.values.get("vllm_server")
        of_server = VLLMServerConfig.from_settings(server).num_devices if server is not None else 0
        processes = max(len(slot.gpus) - of_server, 1)
        if server is not None and server.get("devices") is not None:
            last = range(len(slot.gpus))[-of_server:]
            own = {**server, "devices": ",".join(map(str, last))}
            arguments.append(argument("vllm_server", own))
        # Without the number accelerate starts a process for each GPU.
        command += ["--num_processes", str(processes)]
        if processes > 1:
            command += ["--main_process_port", "0"]  # a free one: other slots' runs have theirs
    return [*command, str(experiment.beside(experiment.file.script)), *arguments]
