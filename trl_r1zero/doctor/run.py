"""The run that is examined: its recipe, its method, how it is launched, and on which machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trl_r1zero.devices import MachineFacts, VisibleDevices
from trl_r1zero.experiments.methods import METHODS
from trl_r1zero.recipe import ParsedRecipe, RecipeError, parse_recipe

from .launch import Launch


@dataclass(frozen=True)
class Run:
    """A run before its start."""

    method: str  # a key of `METHODS`
    recipe: ParsedRecipe
    launch: Launch
    machine: MachineFacts  # with all devices that the user made visible
    environment: Mapping[str, str]
    vllm: str | None  # the installed version

    @property
    def data(self) -> Any:
        """The recipe's settings of data."""
        return self.recipe.instances[1]

    @property
    def model_args(self) -> Any:
        """The recipe's settings of the model, TRL's `ModelConfig`."""
        return self.recipe.instances[-1]

    @property
    def values(self) -> Mapping[str, Any]:
        """Settings as they were given, without what follows from this machine."""
        return self.recipe.values

    @property
    def seen(self) -> MachineFacts:
        """The machine as the trainers see it: only the devices that the launcher shows."""
        if self.launch.gpu_ids is None or self.launch.use_cpu:
            return self.machine
        # Both are the machine's own numbers, or UUIDs.
        all_names = self.machine.visible.names
        names = tuple(name for name in split_names(self.launch.gpu_ids) if name in all_names)
        devices = tuple(self.machine.devices[all_names.index(name)] for name in names)
        visible = VisibleDevices(names, self.launch.gpu_ids)
        return replace(self.machine, devices=devices, visible=visible)

    @property
    def use_cpu(self) -> bool:
        """Whether the CPU was asked for."""
        return self.launch.use_cpu or bool(self.values.get("use_cpu"))

    @property
    def on_cuda(self) -> bool:
        """Whether trainers compute on GPUs."""
        return bool(self.seen.devices) and not self.use_cpu

    @property
    def samples(self) -> bool:
        """Whether completions are sampled: rollouts, or validation."""
        validates = self.values.get("eval_every") is not None and "use_vllm" in self.values
        return self.method in ("grpo", "expert_iteration") or (self.method == "sft" and validates)

    @property
    def samples_with_vllm(self) -> bool:
        return self.samples and bool(self.values.get("use_vllm"))

    @property
    def own_server(self) -> bool:
        """Whether the run starts a vLLM server."""
        return self.samples_with_vllm and self.values.get("vllm_server") is not None

    @property
    def new_tokens(self) -> int:
        """Of the longest completion that is sampled, in training or validation."""
        keys = ["eval_max_completion_length", "max_completion_length"]
        keys += ["max_length"] if self.method == "sft" else []
        return max(self.values.get(key) or 0 for key in keys)

    @property
    def optimizer(self) -> str:
        """As transformers names it."""
        return str(getattr(self.values["optim"], "value", self.values["optim"]))

    @property
    def train_batch(self) -> tuple[int | None, str]:
        """Rows of a train batch, and the key that sets them."""
        name = "total_batch_size" if self.method == "instruction_tuning" else "train_batch_size"
        return self.values.get(name), name


def split_names(devices: str) -> list[str]:
    """The entries of a list of devices."""
    return [name.strip() for name in devices.split(",") if name.strip()]


def read_run_recipe(arguments: Sequence[str], method: str | None) -> tuple[str, ParsedRecipe]:
    """A recipe, and the method that it belongs to, a key of `METHODS`.

    Without `method` the file's name says it, as those of recipes/ begin (`sft-128.yaml`), or the
    keys do.

    Raises:
        RecipeError: It cannot be read, or it fits several methods, or none.
        ValueError: Its settings do not fit one another.
    """
    if method is not None:
        return method, parse_recipe(METHODS[method], arguments)
    parsed: dict[str, ParsedRecipe | ValueError] = {}
    misfits: dict[str, RecipeError] = {}
    for name, dataclasses in METHODS.items():
        try:
            parsed[name] = parse_recipe(dataclasses, arguments)
        except RecipeError as error:
            misfits[name] = error
        except ValueError as error:  # the keys are right, the values are not
            parsed[name] = error
    named = Path(arguments[arguments.index("--config") + 1]).stem.split("-")[0]
    if named in misfits:
        raise misfits[named]
    if not parsed and len(set(map(str, misfits.values()))) == 1:
        raise misfits["grpo"]  # such as a file that is not there
    if not parsed:
        likely = min(misfits, key=lambda name: str(misfits[name]).count("\n"))
        raise RecipeError(f"it fits no method; as {likely}:\n{misfits[likely]}")
    fitting = [named] if named in parsed else list(parsed)
    if len(fitting) > 1:
        raise RecipeError(
            f"its keys fit {', '.join(fitting)}; say which script it is for, such as "
            f"--method {fitting[0]}"
        )
    outcome = parsed[fitting[0]]
    if isinstance(outcome, ValueError):
        raise outcome
    return fitting[0], outcome
