"""The run that is examined: its recipe, its method, how it is launched, and on which machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trl_r1zero.devices import MachineFacts, VisibleDevices
from trl_r1zero.devices.visible import device_names
from trl_r1zero.recipe import ParsedRecipe, RecipeError, parse_recipe
from trl_r1zero.recipe.requirements import REQUIREMENTS, VLLM_REQUIREMENT
from trl_r1zero.runs.kinds import METHODS

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
        names = tuple(name for name in device_names(self.launch.gpu_ids) if name in all_names)
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

    def needed_packages(self) -> dict[str, str]:
        """Package -> versions that fit."""
        needed = dict(REQUIREMENTS)
        if self.own_server:
            needed["vllm"] = VLLM_REQUIREMENT
        if self.launch.distributed_type == "DEEPSPEED":
            needed["deepspeed"] = ""
        attention = self.model_args.attn_implementation or ""
        if "/" in attention or attention.startswith("flash_attention"):
            needed["kernels"] = ""
        if self.optimizer in ("adamw_torch_8bit", "adamw_torch_4bit"):
            needed["torchao"] = ">=0.4"
        elif any(word in self.optimizer for word in ("8bit", "bnb", "paged", "lion", "ademamix")):
            needed["bitsandbytes"] = ""
        return needed


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
    outcomes: dict[str, ParsedRecipe | ValueError] = {}
    for name, dataclasses in METHODS.items():
        try:
            outcomes[name] = parse_recipe(dataclasses, arguments)
        except ValueError as error:
            outcomes[name] = error
    # Those whose keys are right, if not the values.
    fitting = [name for name, one in outcomes.items() if not isinstance(one, RecipeError)]
    named = Path(arguments[arguments.index("--config") + 1]).stem.split("-")[0]
    if named in METHODS:
        fitting = [named]
    if not fitting:
        likely = min(outcomes, key=lambda name: str(outcomes[name]).count("\n"))
        if len(set(map(str, outcomes.values()))) > 1:
            raise RecipeError(f"it fits no method; as {likely}:\n{outcomes[likely]}")
        fitting = [likely]  # the same for all, such as a file that is not there
    if len(fitting) > 1:
        raise RecipeError(
            f"its keys fit {', '.join(fitting)}; say which script it is for, such as "
            f"--method {fitting[0]}"
        )
    outcome = outcomes[fitting[0]]
    if isinstance(outcome, ValueError):
        raise outcome
    return fitting[0], outcome
