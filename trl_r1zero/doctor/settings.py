"""Settings that run but do not do what they say, and the disk."""

import math
import shutil
from pathlib import Path

from trl_r1zero.devices.facts import GB
from trl_r1zero.devices.memory import checkpoint_bytes, model_bytes
from trl_r1zero.devices.training_setup import ModelShape, TrainingSetup

from .findings import Finding, ok, problem, problem_of, warning
from .run import Run

# Explicit bits of a number's significand.
_FRACTION_BITS = {"bfloat16": 7, "float16": 10, "float32": 23}
# The size of most weights of a language model: what they are initialised with.
TYPICAL_WEIGHT = 0.02


def spacing(dtype: str, value: float) -> float:
    """How far apart two neighbouring numbers of a dtype are, at a value."""
    return float(2.0 ** (math.floor(math.log2(value)) - _FRACTION_BITS[dtype]))


def check_learning_rate(learning_rate: float, dtype: str, sharding: str) -> Finding:
    """Whether an update of Adam, about the learning rate, survives the rounding of a weight."""
    # ZeRO and FSDP keep the weights that the optimizer updates in float32.
    where, rate = "settings/learning_rate", f"learning rate {learning_rate:g}"
    if sharding != "none" or dtype not in ("bfloat16", "float16"):
        return ok(where, f"{rate}, float32 updates")
    gap = spacing(dtype, TYPICAL_WEIGHT)
    facts = (
        f"{rate} with {dtype} weights: Adam moves a weight by about that much; at "
        f"{TYPICAL_WEIGHT}, the size of most weights, neighbours are {gap:.1e} apart, so a change "
        f"below {gap / 2:.1e} rounds to nothing"
    )
    if learning_rate >= gap / 2:
        return ok(where, facts)
    moving = learning_rate * 2 ** (_FRACTION_BITS[dtype] + 1)
    return warning(
        where,
        f"{facts}. Weights above {moving:.1e} hardly learn",
        do="set dtype: float32 where memory allows (bfloat16 arithmetic stays), train adapters "
        "(use_peft: true), or expect to need a higher rate",
    )


def check_beta2(optimizer: str, beta2: float, dtype: str, distributed_type: str) -> list[Finding]:
    """Whether Adam's average of squared gradients can decay in the dtype that it is kept in."""
    import torch

    from trl_r1zero.trainers.optimizer_state import check_second_moment

    weight = torch.nn.Parameter(torch.empty(0, dtype=getattr(torch, dtype)))
    try:
        check_second_moment(optimizer, beta2, [weight], distributed_type)
    except ValueError as error:
        return [problem_of("settings/adam_beta2", error)]
    return []


def check_entropies(run: Run) -> list[Finding]:
    """What validation costs besides sampling."""
    if not (run.samples_with_vllm and run.values.get("completion_entropies")):
        return []
    found = (
        "the policy also runs over validation's completions, for their entropies; "
        "completion_entropies: false saves that time"
    )
    return [ok("settings/completion_entropies", found)]


def check_disk(run: Run, shape: ModelShape, setup: TrainingSetup, free: int) -> Finding:
    """Whether a run's folder, at its fullest, has room in so many free bytes."""
    checkpoint, model, values = (
        checkpoint_bytes(shape, setup),
        model_bytes(shape, setup),
        run.values,
    )
    number = 0
    if values.get("save_every", "unknown") is not None:
        limit, steps = values.get("save_total_limit"), values.get("n_grpo_steps")
        every = values.get("save_every")
        # The new one is whole before the oldest goes.
        number = limit + 1 if limit is not None else steps // every + 1 if steps and every else 10
    models = 1 + bool(values.get("save_best") and values.get("eval_every") is not None)
    needed = number * checkpoint + models * model
    facts = (
        f"{values.get('output_dir')}: up to {needed / GB:.1f} GB: {number} x {checkpoint / GB:.1f} "
        "GB of checkpoints (the newest and what save_total_limit keeps), "
        f"{models} x {model / GB:.1f} GB of models (best, final); {free / GB:.1f} GB are free"
    )
    if needed <= free:
        return ok("disk/checkpoints", facts)
    advice = "give another output_dir, or set save_every: null or save_best: false"
    return problem("disk/checkpoints", facts, f"{needed / GB:.1f} GB", advice)


def free_bytes(folder: str | None) -> int:
    """What is free where a folder is, or would be made."""
    path = Path(folder or ".").expanduser().absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
