"""What `optimizer_phase.py` measures: the best micro-batches, memory, gradients and seconds."""

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from optimizer_sides import (
    GradientDifference,
    OurSide,
    Phase,
    Settings,
    StockSide,
    copy_gradients,
    gradient_difference,
)
from paired import Spread, run_pairs
from rollout_workloads import WORKLOADS, StoredBatch, draw_batch, make_model, training_flops
from transformers import PreTrainedModel

from trl_r1zero.data.embedded_tokenizer import build_embedded_tokenizer

SIDES = (StockSide.name, OurSide.name)
# Name of a device -> TFLOP/s of dense matrix products by their inputs' dtype, from the makers' data
# sheets (SXM variants where there are several).
PEAK_TFLOPS = {
    "H200": {"bfloat16": 989.0, "float32": 67.0},
    "H100": {"bfloat16": 989.0, "float32": 67.0},
    "A100": {"bfloat16": 312.0, "float32": 19.5},
    "L40S": {"bfloat16": 362.0, "float32": 91.6},
    "L4": {"bfloat16": 121.0, "float32": 30.3},
    "RTX 4090": {"bfloat16": 165.2, "float32": 82.6},
}


class Benchmark:
    """What all measurements of a run share."""

    def __init__(self, arguments: argparse.Namespace, output_dir: str) -> None:
        self.arguments = arguments
        self.workload = WORKLOADS[arguments.model_shape]
        self.device = torch.device(arguments.device)
        self.tokenizer = build_embedded_tokenizer()
        self.settings = Settings(
            loss=arguments.loss,
            num_rollouts=arguments.rollouts,
            group_size=arguments.group_size,
            max_completion_length=self.workload.max_completion_length,
            autocast=arguments.dtype == "mixed",
            device=self.device,
            output_dir=output_dir,
        )

    def batch(self, accuracy: float, number: int) -> StoredBatch:
        """The stored rollouts of a pair, the same at each call."""
        return draw_batch(
            self.workload,
            self.tokenizer,
            num_rollouts=self.arguments.rollouts,
            group_size=self.arguments.group_size,
            accuracy=accuracy,
            concentration=self.arguments.concentration,
            seed=1_000_000 * (self.arguments.seed + 1) + number,
        )

    def model(self) -> PreTrainedModel:
        dtype = torch.bfloat16 if self.arguments.dtype == "bfloat16" else torch.float32
        return make_model(self.workload.shape, self.tokenizer, dtype, self.arguments.attention)

    def stock_side(self, rows: int) -> StockSide:
        return StockSide(self.model(), self.tokenizer, self.settings, rows)

    def our_side(self, rows: int) -> OurSide:
        cut: dict[str, Any] = {"gradient_accumulation_steps": self.arguments.rollouts // rows}
        if self.arguments.our_microbatch == "tokens":
            batch = self.batch(self.arguments.accuracies[0], 0)
            width = max(map(len, batch.prompt_ids)) + max(map(len, batch.completion_ids))
            cut = {"gradient_accumulation_steps": 1, "max_tokens_per_microbatch": rows * width}
        cut["pack_rows"] = self.arguments.our_pack_rows
        head = {"auto": None, "yes": True, "no": False}[self.arguments.our_fused_head]
        return OurSide(self.model(), self.tokenizer, self.settings, {"fused_lm_head": head, **cut})

    def pairs(
        self, stock: StockSide, ours: OurSide, accuracy: float, *, pairs: int, warmup: int
    ) -> list[tuple[Phase, Phase]]:
        """What both sides took for the same batches, in turns; see `run_pairs`."""
        return run_pairs(
            lambda number: stock.run(self.batch(accuracy, number)),
            lambda number: ours.run(self.batch(accuracy, number)),
            pairs=pairs,
            warmup=warmup,
        )

    @property
    def peak_tflops(self) -> float | None:
        if self.arguments.peak_tflops is not None or self.device.type != "cuda":
            return self.arguments.peak_tflops
        dtype = "float32" if self.arguments.dtype == "float32" else "bfloat16"
        name = torch.cuda.get_device_name(self.device)
        return next((peak[dtype] for known, peak in PEAK_TFLOPS.items() if known in name), None)


# Micro-batches


def sweep(benchmark: Benchmark) -> tuple[dict[str, dict[int, float]], int, int]:
    """Wall seconds of a batch, the least of the pairs, by side and rows; and the rows that TRL and
    ours then get."""
    arguments = benchmark.arguments
    rows_to_try = arguments.rows
    if len(rows_to_try) == 1:
        return {}, rows_to_try[0], rows_to_try[0]
    accuracy = arguments.accuracies[len(arguments.accuracies) // 2]
    seconds: dict[str, dict[int, float]] = {name: {} for name in SIDES}
    for rows in rows_to_try:
        stock, ours = benchmark.stock_side(rows), benchmark.our_side(rows)
        pairs = benchmark.pairs(
            stock, ours, accuracy, pairs=arguments.sweep_pairs, warmup=arguments.warmup
        )
        for name, phases in zip(SIDES, zip(*pairs, strict=True), strict=True):
            seconds[name][rows] = min(phase.optimizer.wall for phase in phases)
        print(f"sweep: {rows} rows, TRL {seconds[StockSide.name][rows]:.2f} s, ours "
              f"{seconds[OurSide.name][rows]:.2f} s", file=sys.stderr)  # fmt: skip
        del stock, ours
        gc.collect()  # a trainer and its callbacks know one another
        if benchmark.device.type == "cuda":
            torch.cuda.empty_cache()
    stock_rows = min(rows_to_try, key=lambda rows: seconds[StockSide.name][rows])
    no_larger = [rows for rows in rows_to_try if rows <= stock_rows]
    return seconds, stock_rows, min(no_larger, key=lambda rows: seconds[OurSide.name][rows])


# Memory


def measure_memory(benchmark: Benchmark, argv: Sequence[str], rows: Sequence[int]) -> list[Any]:
    """Bytes of each side in fresh processes, one pair after the other."""
    script = str(Path(__file__).with_name("optimizer_phase.py"))
    runs = []
    for number in range(benchmark.arguments.memory_runs):
        pair = {}
        for name, side_rows in zip(SIDES, rows, strict=True):
            command = [sys.executable, script, *argv, "--rows", str(side_rows)]
            command += ["--memory_of", name, "--seed", str(benchmark.arguments.seed + number)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            pair[name] = json.loads(done.stdout.splitlines()[-1])
        runs.append(pair)
    return runs


def memory_of(benchmark: Benchmark, name: str) -> dict[str, int]:
    """Peak bytes of one batch of one side in this process, and of these those of the batch."""
    (rows,) = benchmark.arguments.rows
    make = benchmark.stock_side if name == StockSide.name else benchmark.our_side
    side = make(rows)
    accuracies = benchmark.arguments.accuracies
    batch = benchmark.batch(accuracies[len(accuracies) // 2], 0)
    if benchmark.device.type == "cuda":
        before = torch.cuda.memory_allocated(benchmark.device)
        torch.cuda.reset_peak_memory_stats(benchmark.device)
        side.run(batch)
        peak = torch.cuda.max_memory_allocated(benchmark.device)
    else:
        before = psutil.Process().memory_info().rss
        side.run(batch)
        peak = _peak_resident_bytes()
    return {"peak": peak, "batch": peak - before}


def _peak_resident_bytes() -> int:
    # Linux's ru_maxrss is at least what the parent process had when it started this one; VmHWM is
    # this program's own.
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (s for s in status.read_text().splitlines() if s.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# Time


@dataclass(frozen=True)
class Result:
    """What was measured at one accuracy; ratios are above 1 where ours needs less.

    Attributes:
        accuracy: Mean reward that was asked for.
        zero_advantage_share: Of the groups, over the pairs' batches.
        padding_share: Of all positions, if each row is as wide as its batch.
        tokens: Mean real tokens of a batch, prompts and completions.
        gradient: Of one batch, ours against TRL's.
        seconds, cpu_seconds, tokens_per_second: By side, over pairs.
        seconds_before: By side, what the trainer did with the rollouts before (not in `seconds`).
        ratio, cpu_ratio: TRL's seconds over ours, over pairs.
        peak_share, peak_share_needed: By side, of the device's peak: the operations of all rows,
            and of the rows whose group has an advantage, per second; None if it is not known.
    """

    accuracy: float
    zero_advantage_share: float
    padding_share: float
    tokens: float
    gradient: GradientDifference
    seconds: dict[str, Spread]
    cpu_seconds: dict[str, Spread]
    tokens_per_second: dict[str, Spread]
    seconds_before: dict[str, Spread]
    ratio: Spread
    cpu_ratio: Spread
    peak_share: dict[str, float] | None
    peak_share_needed: dict[str, float] | None


def measure(benchmark: Benchmark, stock: StockSide, ours: OurSide, accuracy: float) -> Result:
    arguments = benchmark.arguments
    first = benchmark.batch(accuracy, 0)
    gradients = []
    for side in (stock, ours):
        side.run(first)
        gradients.append(copy_gradients(side.model))
        side.model.zero_grad(set_to_none=True)
    difference = gradient_difference(*gradients)
    gradients.clear()
    if difference.relative_l2 > arguments.max_gradient_difference:
        raise SystemExit(
            f"the gradients differ by {difference.relative_l2:.2g} (relative L2), more than "
            f"{arguments.max_gradient_difference:.2g}: the two sides do not compute the same loss"
        )
    pairs = benchmark.pairs(stock, ours, accuracy, pairs=arguments.pairs, warmup=arguments.warmup)
    phases = dict(zip(SIDES, zip(*pairs, strict=True), strict=True))
    batches = [benchmark.batch(accuracy, number) for number in range(arguments.pairs)]
    tokens = [sum(batch.lengths) for batch in batches]

    def share(lengths: Sequence[Sequence[int]]) -> dict[str, float] | None:
        if benchmark.peak_tflops is None:
            return None
        shape, num_parameters = benchmark.workload.shape, sum(p.numel() for p in parameters)
        flops = [training_flops(shape, num_parameters, row_lengths) for row_lengths in lengths]
        return {
            name: statistics.median(
                f / phase.optimizer.wall / benchmark.peak_tflops / 1e12
                for f, phase in zip(flops, side_phases, strict=True)
            )
            for name, side_phases in phases.items()
        }

    parameters = list(ours.model.parameters())
    needed = [
        [n for n, has in zip(batch.lengths, batch.has_advantage, strict=True) if has]
        for batch in batches
    ]
    return Result(
        accuracy=accuracy,
        zero_advantage_share=statistics.mean(batch.zero_advantage_share for batch in batches),
        padding_share=statistics.mean(batch.batch_padding_share for batch in batches),
        tokens=statistics.mean(tokens),
        gradient=difference,
        seconds={n: Spread.of([p.optimizer.wall for p in s]) for n, s in phases.items()},
        cpu_seconds={n: Spread.of([p.optimizer.cpu for p in s]) for n, s in phases.items()},
        tokens_per_second={
            n: Spread.of([t / p.optimizer.wall for t, p in zip(tokens, s, strict=True)])
            for n, s in phases.items()
        },
        seconds_before={n: Spread.of([p.before.wall for p in s]) for n, s in phases.items()},
        ratio=Spread.of([a.optimizer.wall / b.optimizer.wall for a, b in pairs]),
        cpu_ratio=Spread.of([a.optimizer.cpu / b.optimizer.cpu for a, b in pairs]),
        peak_share=share([batch.lengths for batch in batches]),
        peak_share_needed=share(needed),
    )
