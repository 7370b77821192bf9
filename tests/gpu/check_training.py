"""Parts of the GPU check that need no server: the optimizer phase, memory, equal paths."""

import time
from typing import Any

import optimizer_phase
import torch
from check_setup import Recorder, Setup, require
from optimizer_measurements import SIDES, Benchmark, measure
from optimizer_sides import OurSide, gradient_difference
from rollout_workloads import WORKLOADS, draw_batch
from torch import Tensor

# Bytes of a device -> rows of a micro-batch (1,324 tokens at most each, without checkpointing),
# with two trainers' weights and gradients beside it.
_ROWS_BY_GIB = ((70, 8), (40, 4), (0, 1))


# (c) The optimizer phase


def optimizer(setup: Setup, recorder: Recorder) -> str:
    """Forward and backward of a train batch beside TRL's, as `benchmarks/optimizer_phase.py`."""
    recorder.doing("measuring the peak of matrix products")
    peak = matmul_flops(torch.device(setup.device), setup.dtype)
    recorder.record(matmul_tflops=peak / 1e12, dtype=setup.dtype_name)
    arguments = optimizer_phase.parse(_workload(setup, peak))
    benchmark = SeededBenchmark(setup, arguments)
    recorder.doing("making both trainers")
    stock, ours = (make(*arguments.rows) for make in (benchmark.stock_side, benchmark.our_side))
    recorder.doing("measuring pairs of batches")
    result = measure(benchmark, stock, ours, *arguments.accuracies)
    require(result.peak_share is not None, "there is no share of the peak")
    assert result.peak_share is not None
    trl, own = SIDES
    recorder.record(
        rows=arguments.rows[0],
        num_rollouts=arguments.rollouts,
        tokens=result.tokens,
        num_parameters=sum(p.numel() for p in ours.model.parameters()),
        seconds={side: result.seconds[side].values for side in SIDES},
        tokens_per_second={side: result.tokens_per_second[side].median for side in SIDES},
        ratio=result.ratio.values,
        matmul_share=result.peak_share,
        matmul_share_of_rows_with_advantage=result.peak_share_needed,
        gradient_relative_l2=result.gradient.relative_l2,
    )
    speed, share = result.tokens_per_second, result.peak_share
    return (
        f"ours {speed[own].median:,.0f} tokens/s ({share[own]:.0%} of {peak / 1e12:.3g} TFLOP/s), "
        f"TRL {speed[trl].median:,.0f} ({share[trl]:.0%}): {result.ratio.median:.2f} times as fast"
    )


class SeededBenchmark(Benchmark):
    """The benchmark, with models that are made on the device."""

    def __init__(self, setup: Setup, arguments: Any) -> None:
        super().__init__(arguments, str(setup.output / "parts" / "trainers"))
        self._setup = setup

    def model(self) -> Any:
        return self._setup.model(self._setup.dtype)


def _workload(setup: Setup, peak_flops: float) -> list[str]:
    """Arguments of `optimizer_phase.py`: some tens of seconds."""
    rows = 8
    if setup.on_cuda:
        rows = rows_for(torch.cuda.get_device_properties(0).total_memory / 2**30)
    words = f"--model_shape {setup.model_shape} --device {setup.device} --dtype {setup.dtype_name}"
    words += f" --rollouts 32 --rows {rows} --pairs 3 --accuracies 0.5"
    return [*words.split(), "--memory_runs", "0", "--peak_tflops", str(peak_flops / 1e12)]


def rows_for(gib: float) -> int:
    """Rows of a micro-batch that fit on a device of so many GiB."""
    return next(rows for least, rows in _ROWS_BY_GIB if gib >= least)


def matmul_flops(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Floating-point operations per second of a large matrix product, the fastest of many.

    A square product of size n is 2 n^3 operations. What a device reaches here is less than what its
    data sheet says, as its clock falls under load.
    """
    size, repeats = (8192, 10) if device.type == "cuda" else (1024, 1)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    fastest = float("inf")
    deadline = time.perf_counter() + seconds
    while fastest == float("inf") or time.perf_counter() < deadline:
        _synchronize(device)
        begun = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, b)
        _synchronize(device)
        fastest = min(fastest, (time.perf_counter() - begun) / repeats)
    return 2 * size**3 / fastest


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# (e) Equal paths

# Setting of our trainer by path; the first is what the others have to equal.
PATHS: dict[str, dict[str, Any]] = {
    "plain": {"fused_lm_head": False, "pack_rows": False},
    "packed": {"fused_lm_head": False, "pack_rows": True},
    "fused": {"fused_lm_head": True, "pack_rows": False},
    "packed and fused": {"fused_lm_head": True, "pack_rows": True},
    "shared prompts": {"fused_lm_head": False, "pack_rows": False, "share_prefixes": True},
}
# Of weights -> what the reference computes in: twice the bits.
REFERENCES = {torch.bfloat16: torch.float32, torch.float32: torch.float64}
# A path may be so many times as far from the reference as the plain path is: both round equally
# often, in another order, so their errors are of one size but not the same.
NOISE_FACTOR = 2.0
# Where the plain path is exact by chance, so many units of the dtype's last place are allowed,
# relatively; more for the loss, a single number in which advantages of both signs cancel.
NOISE_FLOOR_ULPS = {"loss": 16.0, "gradient": 4.0}
# Layers, on a GPU: all are alike, and so three dtypes and five paths fit into the time and 24 GB.
_LAYERS_ON_CUDA = 4


def equal(setup: Setup, recorder: Recorder) -> str:
    """Loss and gradient of one train batch by each path, in each dtype.

    How far apart two orders of the same sums are in bfloat16 nobody knows beforehand. So it is
    measured: a reference with the same weights computes in twice the bits; the plain path's
    distance to it is the dtype's noise, and no other path may be further away than a small multiple
    of it. A wrong mask, position or temperature is far beyond that.
    """
    compared = {}
    cases = [("bfloat16", torch.bfloat16, False), ("mixed", torch.float32, True)]
    if not setup.on_cuda:
        cases.append(("float32", torch.float32, False))
    for name, dtype, autocast in cases:
        recorder.doing(f"computing the reference of {name}")
        reference = _reference(setup, name, dtype)
        errors: dict[str, dict[str, float]] = {}
        for path, settings in PATHS.items():
            recorder.doing(f"comparing {path} in {name}")
            measured = _loss_and_gradient(setup, dtype, dtype, autocast, settings)
            errors[path] = _errors(measured, reference)
        compared[name] = errors
        recorder.record(errors=compared)
        computes_in = torch.bfloat16 if autocast else dtype
        for path in list(PATHS)[1:]:
            for what, error in errors[path].items():
                allowed = allowed_error(what, errors["plain"][what], computes_in)
                require(
                    error <= allowed,
                    f"{name}: {what} of {path} is {error:.2g} from the reference's, more than "
                    f"{allowed:.2g} (plain: {errors['plain'][what]:.2g})",
                )
    worst = {
        name: max(error["gradient"] for error in errors.values())
        for name, errors in compared.items()
    }
    said = ", ".join(
        f"{name} {compared[name]['plain']['gradient']:.1g} plain and at most {error:.1g} otherwise"
        for name, error in worst.items()
    )
    return f"relative L2 of the gradient's error: {said}"


def allowed_error(what: str, plain_error: float, dtype: torch.dtype) -> float:
    """How far from the reference's loss or gradient, relatively, another path than the plain one
    may be."""
    return max(NOISE_FACTOR * plain_error, NOISE_FLOOR_ULPS[what] * torch.finfo(dtype).eps)


def _reference(setup: Setup, name: str, dtype: torch.dtype) -> tuple[float, dict[str, Tensor]]:
    # Mixed: float32 weights are their own reference; what is rounded is the computation.
    wider = torch.float32 if name == "mixed" else REFERENCES[dtype]
    return _loss_and_gradient(setup, dtype, wider, False, PATHS["plain"])


def _loss_and_gradient(
    setup: Setup,
    weights: torch.dtype,
    computes_in: torch.dtype,
    autocast: bool,
    settings: dict[str, Any],
) -> tuple[float, dict[str, Tensor]]:
    """Of one batch of two groups, in micro-batches of half of it.

    Args:
        setup: Where.
        weights: What the weights are drawn and rounded to.
        computes_in: What they are converted to.
        autocast: Whether to compute in bfloat16 nevertheless.
        settings: Of our trainer.
    """
    batch = draw_batch(
        WORKLOADS[setup.model_shape],
        setup.tokenizer,
        num_rollouts=8,
        group_size=4,
        accuracy=0.5,
        concentration=1.0,
        seed=0,
    )
    model = setup.model(weights, _LAYERS_ON_CUDA if setup.on_cuda else None).to(computes_in)
    side = OurSide(
        model,
        setup.tokenizer,
        setup.side_settings(batch, autocast=autocast),
        {"gradient_accumulation_steps": 2, **settings},
    )
    losses: list[Tensor] = []
    step = side.trainer.training_step
    side.trainer.training_step = lambda *args: losses.append(step(*args))
    side.run(batch)
    gradient = {
        name: parameter.grad
        for name, parameter in side.model.named_parameters()
        if parameter.grad is not None
    }
    side.trainer.training_step = step
    del side, model
    setup.free_memory()
    return losses[0].item(), gradient


def _errors(
    measured: tuple[float, dict[str, Tensor]], reference: tuple[float, dict[str, Tensor]]
) -> dict[str, float]:
    difference = gradient_difference(reference[1], measured[1])
    return {
        "loss": abs(measured[0] - reference[0]) / abs(reference[0]),
        "gradient": difference.relative_l2,
    }
