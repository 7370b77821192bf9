"""The run that is looked at: its recipe, its method, how it is launched, and on which machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_r1zero.devices import MachineFacts
from trl_r1zero.recipe import ParsedRecipe, RecipeError, parse_recipe
from trl_r1zero.runs.kinds import METHODS

from .launch import Launch, seen_by_trainers

SAMPLING_METHODS = ("grpo", "expert_iteration")


@dataclass(frozen=True)
class Run:
    """A run before its start.

    Attributes:
        method: A key of `METHODS`.
        recipe: All settings.
        launch: How its processes are started.
        machine: All devices that the user made visible.
        environment: Of this process.
        vllm: The installed vLLM's version; None without.
    """

    method: str
    recipe: ParsedRecipe
    launch: Launch
    machine: MachineFacts
    environment: Mapping[str, str]
    vllm: str | None

    @property
    def config(self) -> Any:
        """The trainer's settings."""
        return self.recipe.instances[0]

    @property
    def data(self) -> Any:
        """What is trained on."""
        return self.recipe.instances[1]

    @property
    def values(self) -> Mapping[str, Any]:
        """Settings as they were given: what follows from this machine is not in them."""
        return self.recipe.values

    @property
    def seen(self) -> MachineFacts:
        """The machine as the trainers' processes see it."""
        return seen_by_trainers(self.machine, self.launch)

    @property
    def on_cuda(self) -> bool:
        """Whether trainers compute on GPUs."""
        uses_cpu = self.launch.use_cpu or self.values.get("use_cpu", False)
        return bool(self.seen.devices) and not uses_cpu

    @property
    def server_on_cuda(self) -> bool:
        """Whether the server does."""
        if self.machine.assumed:
            return bool(self.machine.devices)
        return bool(self.machine.devices) and "cpu" not in (self.vllm or "").partition("+")[2]

    @property
    def samples(self) -> bool:
        """Whether completions are sampled: rollouts, or validation."""
        validates = self.values.get("eval_every") is not None and "use_vllm" in self.values
        return self.method in SAMPLING_METHODS or (self.method == "sft" and validates)

    @property
    def own_server(self) -> bool:
        """Whether the run starts a vLLM server."""
        used = self.values.get("use_vllm") and self.values.get("vllm_server") is not None
        return self.samples and bool(used)

    @property
    def other_server(self) -> str | None:
        """The host of a server that runs already and that the run connects to."""
        if not (self.samples and self.values.get("use_vllm")) or self.own_server:
            return None
        return str(self.values.get("vllm_server_base_url") or self.values["vllm_server_host"])

    @property
    def new_tokens(self) -> int:
        """Of the longest completion that is sampled, in training or validation."""
        lengths = [self.values.get("eval_max_completion_length")]
        lengths.append(self.values.get("max_completion_length"))
        lengths.append(self.values.get("max_length") if self.method == "sft" else None)
        return max((length for length in lengths if length), default=0)

    @property
    def autocast(self) -> bool:
        """Whether forward and backward run in bfloat16 over float32 weights."""
        bf16 = self.values.get("bf16")
        if bf16 is None:
            return self.on_cuda and not self.values.get("fp16")
        return bool(bf16)

    @property
    def train_batch(self) -> tuple[int | None, str]:
        """Rows of a train batch, and the key that says so."""
        name = "total_batch_size" if self.method == "instruction_tuning" else "train_batch_size"
        return self.values.get(name), name

    def microbatch_tokens(self, longest_row: int, budget: int | None, default_rows: int) -> int:
        """Tokens of a micro-batch at most, as the trainers cut one.

        Args:
            longest_row: Its tokens.
            budget: What fits into memory; None where it is not known.
            default_rows: Rows where neither a setting nor memory says anything.
        """
        if self.method == "instruction_tuning":
            return int(self.values["per_device_train_batch_size"]) * longest_row
        steps = self.values.get("gradient_accumulation_steps")
        limit = self.values.get("max_tokens_per_microbatch")
        share = (self.train_batch[0] or 1) // self.launch.num_processes
        rows = None if steps is None else max(1, share // steps)
        limit = limit or budget
        if rows is None and limit is None:
            rows = default_rows
        by_rows = None if rows is None else rows * longest_row
        sizes = [size for size in (by_rows, limit) if size is not None]
        return max(longest_row, min(sizes))


def read_run_recipe(arguments: Sequence[str], method: str | None) -> tuple[str, ParsedRecipe]:
    """A recipe, and the method that it belongs to.

    Args:
        arguments: `--config` and the keys that change it.
        method: A key of `METHODS`; None to find out from the keys.

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
    named = _method_in_name(arguments)
    if named in misfits:
        raise misfits[named]
    if not parsed and len({str(error) for error in misfits.values()}) == 1:
        raise misfits["grpo"]  # such as a file that is not there
    if not parsed:
        likely = min(misfits, key=lambda name: str(misfits[name]).count("\n"))
        raise RecipeError(f"it fits no method; as {likely}:\n{misfits[likely]}")
    fitting = [name for name in parsed if named in (None, name)]
    if len(fitting) > 1:
        raise RecipeError(
            f"its keys fit {', '.join(fitting)}; say which script it is for, such as "
            f"--method {fitting[0]}"
        )
    outcome = parsed[fitting[0]]
    if isinstance(outcome, ValueError):
        raise outcome
    return fitting[0], outcome


def _method_in_name(arguments: Sequence[str]) -> str | None:
    """The method that the recipe's file is called by, as all of recipes/ are: `sft-128.yaml`."""
    for position, argument in enumerate(arguments):
        if argument == "--config" or argument.startswith("--config="):
            value = argument.partition("=")[2] or "".join(arguments[position + 1 : position + 2])
            stem = Path(value).stem
            names = sorted(METHODS, key=len, reverse=True)
            return next((name for name in names if stem.split("-")[0] == name), None)
    return None
