"""Settings that run but do not do what they say, and the disk."""

import math
import shutil
from pathlib import Path

from trl_r1zero.devices.memory import ModelShape, TrainingSetup, checkpoint_bytes, model_bytes

from .findings import Finding, ok, problem, warning
from .run import Run

GB = 10**9
# Bits behind the first of a number's significand.
_FRACTION_BITS = {"bfloat16": 7, "float16": 10, "float32": 23}
# The size of most weights of a language model: what they are initialised with.
TYPICAL_WEIGHT = 0.02


def spacing(dtype: str, value: float) -> float:
    """How far apart two neighbours are in a dtype, at a value."""
    exponent = math.floor(math.log2(value))
    return float(2.0 ** (exponent - _FRACTION_BITS[dtype]))


def check_learning_rate(learning_rate: float, dtype: str, sharding: str) -> list[Finding]:
    """Whether an update of Adam, about the learning rate, survives the rounding of a weight.

    Args:
        learning_rate: The peak.
        dtype: Of the weights that are trained.
        sharding: ZeRO and FSDP keep the weights that the optimizer works on in float32.
    """
    if sharding != "none" or dtype not in ("bfloat16", "float16"):
        return [
            ok("settings", "learning_rate", f"learning rate {learning_rate:g}, float32 updates")
        ]
    gap = spacing(dtype, TYPICAL_WEIGHT)
    facts = (
        f"learning rate {learning_rate:g} with {dtype} weights: Adam moves a weight by about that "
        f"much; at {TYPICAL_WEIGHT}, the size of most weights, neighbours are {gap:.1e} apart, so "
        f"a change below {gap / 2:.1e} rounds to nothing"
    )
    if learning_rate >= gap / 2:
        return [ok("settings", "learning_rate", facts)]
    moving = learning_rate * 2 ** (_FRACTION_BITS[dtype] + 1)
    return [
        warning(
            "settings",
            "learning_rate",
            f"{facts}. Weights above {moving:.1e} hardly learn",
            "",
            "set dtype: float32 where memory allows (bfloat16 arithmetic stays), train adapters "
            "(use_peft: true), or expect to need a higher rate",
        )
    ]


def check_beta2(optimizer: str, beta2: float, dtype: str, distributed_type: str) -> list[Finding]:
    """Whether Adam's average of squared gradients can decay in the dtype that it is kept in."""
    import torch

    from trl_r1zero.trainers.optimizer_state import check_second_moment

    weight = torch.nn.Parameter(torch.empty(0, dtype=getattr(torch, dtype)))
    try:
        check_second_moment(optimizer, beta2, [weight], distributed_type)
    except ValueError as error:
        found, _, advice = str(error).partition("; ")
        return [problem("settings", "adam_beta2", found, "", advice)]
    return []


def check_entropies(run: Run) -> list[Finding]:
    """What validation costs besides sampling."""
    if not (run.samples and run.values.get("use_vllm") and run.values.get("completion_entropies")):
        return []
    return [
        ok(
            "settings",
            "completion_entropies",
            "the policy also runs over validation's completions, for their entropies; "
            "completion_entropies: false saves that time",
        )
    ]


def check_time() -> list[Finding]:
    """What is known of the time of a step: nothing yet that was measured."""
    return [
        ok(
            "time",
            "step",
            "seconds per step: not yet measured on a GPU; the first steps of a run say it "
            "(profile: true)",
        )
    ]


def disk_needed(run: Run, shape: ModelShape, setup: TrainingSetup) -> tuple[int, str]:
    """Bytes of a run's folder at its fullest, and what they are made of."""
    checkpoint, model = checkpoint_bytes(shape, setup), model_bytes(shape, setup)
    values = run.values
    saves = values.get("save_every") is not None if "save_every" in values else True
    limit = values.get("save_total_limit")
    number = 0
    if saves:
        # The new one is whole before the oldest goes.
        number = (limit + 1) if limit is not None else _number_of_checkpoints(run)
    models = 1 + bool(values.get("save_best") and values.get("eval_every") is not None)
    words = (
        f"{number} x {checkpoint / GB:.1f} GB of checkpoints (the newest and what "
        f"save_total_limit keeps), {models} x {model / GB:.1f} GB of models (best, final)"
    )
    return number * checkpoint + models * model, words


def _number_of_checkpoints(run: Run) -> int:
    steps, every = run.values.get("n_grpo_steps"), run.values.get("save_every")
    return steps // every + 1 if steps and every else 10


def check_disk(needed: int, words: str, folder: str | None, free: int) -> list[Finding]:
    """Whether a run's folder has room.

    Args:
        needed: Bytes.
        words: What they are made of.
        folder: The recipe's `output_dir`.
        free: Bytes that are free there.
    """
    facts = f"{folder}: up to {needed / GB:.1f} GB: {words}; {free / GB:.1f} GB are free"
    if needed > free:
        return [
            problem(
                "disk",
                "checkpoints",
                facts,
                f"{needed / GB:.1f} GB",
                "give another output_dir, or set save_every: null or save_best: false",
            )
        ]
    return [ok("disk", "checkpoints", facts)]


def free_bytes(folder: str | None) -> int:
    """What is free where a folder is, or would be made."""
    path = Path(folder or ".").expanduser().absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
