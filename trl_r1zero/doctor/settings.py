"""Settings that run but do not do what they say."""

import math

from .findings import Finding, ok, problem_of, warning
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
