"""The optimizer phase of GRPO, in TRL's `GRPOTrainer` and in `R1ZeroGRPOTrainer`, side by side.

    python benchmarks/optimizer_phase.py --model_shape tiny
    python benchmarks/optimizer_phase.py --model_shape 28m --rollouts 64 --output 28m.json
    python benchmarks/optimizer_phase.py --model_shape qwen2.5-math-1.5b --dtype bfloat16  # a GPU

Both trainers get the same stored rollouts, the same weights and settings with the same loss, and
compute the gradient of one train batch: forward and backward, what follows sampling and grading
(optimizer_sides.py says what is timed). They run in one process and in turns, a new batch for each
pair; quoted is the median of the pairs' ratios with its quartiles.

Micro-batches: `--rows` are tried for both in a sweep. TRL gets its fastest, and ours the fastest of
those that have no more rows than TRL's, hence no more memory. TRL's trainer always computes
log-probabilities by its fused head; ours does on accelerators only, unless `--our_fused_head` says
otherwise. Gradient checkpointing is off in both.

Memory is that of fresh processes which have one of the trainers and run one batch: on a GPU the
allocator's peak, elsewhere the peak of resident memory less what was resident before the batch.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from optimizer_measurements import (
    SIDES,
    Benchmark,
    Result,
    measure,
    measure_memory,
    memory_of,
    sweep,
)
from optimizer_sides import LOSSES, OurSide, StockSide
from paired import Spread
from rollout_workloads import WORKLOADS

from trl_r1zero.evaluation.environment import environment

# Above this, relative L2, the two sides do not compute the same loss.
MAX_DIFFERENCE = {"float32": 1e-4, "bfloat16": 0.1, "mixed": 0.1}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model_shape", choices=WORKLOADS, default="tiny", help="the model, and its rollouts")
    add("--loss", choices=LOSSES, default="dr_grpo", help="TRL's name of the loss")
    add("--accuracies", type=float, nargs="+", default=[0.1, 0.5, 0.9],
        help="mean rewards of the rollouts (default: 0.1 0.5 0.9)")  # fmt: skip
    add("--concentration", type=float, default=1.0,
        help="a + b of the Beta distribution of questions' accuracies (default: 1)")  # fmt: skip
    add("--rollouts", type=int, help="rows of the train batch (default: the model's)")
    add("--group_size", type=int, default=8, help="rows per question (default: 8)")
    add("--rows", type=int, nargs="+", help="micro-batch rows to try (default: the model's)")
    add("--pairs", type=int, default=5, help="timed pairs per accuracy (default: 5)")
    add("--warmup", type=int, default=1, help="pairs before them, not counted (default: 1)")
    add("--sweep_pairs", type=int, default=2,
        help="timed pairs for each of --rows, if there are several (default: 2)")  # fmt: skip
    add("--memory_runs", type=int, default=3,
        help="fresh processes per side that measure memory; 0: none (default: 3)")  # fmt: skip
    add("--dtype", choices=MAX_DIFFERENCE, default="float32",
        help="of the weights; mixed: float32 weights and bfloat16 autocast")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", type=int, default=1, help="of torch on the CPU (default: 1)")
    add("--attention", default="sdpa", help="attention implementation of both (default: sdpa)")
    add("--our_fused_head", choices=("auto", "yes", "no"), default="auto")
    add("--our_microbatch", choices=("rows", "tokens"), default="rows",
        help="ours by rows, or by as many padded tokens as TRL's rows have")  # fmt: skip
    add("--our_pack_rows", action="store_true", help="rows one behind the other in ours")
    add("--peak_tflops", type=float, help="of the device, if it is not a known one")
    add("--max_gradient_difference", type=float,
        help="relative L2 that is an error (default: 1e-4, with bfloat16 0.1)")  # fmt: skip
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="JSON file to write")
    add("--memory_of", choices=SIDES, help=argparse.SUPPRESS)  # what a memory process is told
    arguments = parser.parse_args(argv)
    check(parser, arguments)
    return arguments


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Fill in what depends on other arguments; end with a message if they do not fit."""
    workload = WORKLOADS[arguments.model_shape]
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if arguments.model_shape == "qwen2.5-math-1.5b" and arguments.device == "cpu":
        parser.error(
            "--model_shape qwen2.5-math-1.5b needs a CUDA device (one of 80 GB); on a CPU one "
            "batch takes hours. Use --model_shape 28m here"
        )
    if not all(0 < accuracy < 1 for accuracy in arguments.accuracies):
        parser.error(f"--accuracies must be between 0 and 1, got {arguments.accuracies}")
    arguments.rollouts = arguments.rollouts or workload.num_rollouts
    if arguments.rollouts % arguments.group_size:
        parser.error(f"--rollouts {arguments.rollouts} is no multiple of --group_size")
    given = arguments.rows is not None
    arguments.rows = sorted(arguments.rows or workload.rows)
    fitting = [rows for rows in arguments.rows if arguments.rollouts % rows == 0]
    if not fitting or (given and fitting != arguments.rows):
        parser.error(f"--rows must divide --rollouts {arguments.rollouts}, got {arguments.rows}")
    arguments.rows = fitting
    if arguments.max_gradient_difference is None:
        arguments.max_gradient_difference = MAX_DIFFERENCE[arguments.dtype]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the report, and return what `--output` gets."""
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    about = environment()
    with tempfile.TemporaryDirectory() as folder:
        benchmark = Benchmark(arguments, folder)
        if arguments.memory_of is not None:
            print(json.dumps(memory_of(benchmark, arguments.memory_of)))
            return {}
        seconds, stock_rows, our_rows = sweep(benchmark)
        # Before there are models in this process: on a GPU the others need the room.
        memory = measure_memory(benchmark, argv, (stock_rows, our_rows))
        stock, ours = benchmark.stock_side(stock_rows), benchmark.our_side(our_rows)
        results = [measure(benchmark, stock, ours, accuracy) for accuracy in arguments.accuracies]
    report: dict[str, Any] = {
        **about,
        "threads": arguments.threads,
        "settings": vars(arguments) | {"output": arguments.output and str(arguments.output)},
        "loss": {
            "TRL": dict(LOSSES[arguments.loss].stock),
            "ours": dict(LOSSES[arguments.loss].ours),
        },
        "parameters": sum(p.numel() for p in ours.model.parameters()),
        "peak_tflops": benchmark.peak_tflops,
        "rows": {StockSide.name: stock_rows, OurSide.name: our_rows},
        "our_fused_lm_head": ours.fused_lm_head,
        "sweep_seconds": seconds,
        "memory_bytes": memory,
        "results": [asdict(result) for result in results],
    }
    print(markdown(report, results))
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    return report


def markdown(report: dict[str, Any], results: Sequence[Result]) -> str:
    """The report as a person reads it; ratios are TRL's over ours."""
    settings, packages = report["settings"], report["packages"]
    head = "fused head" if report["our_fused_lm_head"] else "plain logits"
    stock, ours = SIDES
    our_cut = f"{report['rows'][ours]} rows"
    if settings["our_microbatch"] == "tokens":
        our_cut = f"as many tokens as {our_cut} have there with padding"
    if settings["our_pack_rows"]:
        our_cut += ", packed"
    lines = [
        f"{settings['model_shape']}, {report['parameters'] / 1e6:.1f}M parameters, "
        f"{settings['dtype']}, {settings['rollouts']} rollouts in groups of "
        f"{settings['group_size']}, loss {settings['loss']}; micro-batches of "
        f"{report['rows'][stock]} rows in TRL (fused head), of {our_cut} in ours ({head}).",
        "",
        f"{report['device']} ({report['platform']}), {report['threads']} thread(s), torch "
        f"{packages['torch']}, TRL {packages['trl']}, transformers {packages['transformers']}, "
        f"commit {report['commit']}, {report['started']}.",
        "",
        batch_table(results),
        "",
        time_table(results),
        "",
        f"Medians of {settings['pairs']} pairs, with quartiles in brackets; the interval is a "
        "bootstrap of the median.",
        "Tokens are those of prompts and responses, without padding.",
    ]
    if report["memory_bytes"]:
        lines += ["", memory_table(report["memory_bytes"])]
    if results[0].peak_share is not None and results[0].peak_share_needed is not None:
        lines += ["", peak_table(results, report["peak_tflops"])]
    return "\n".join(lines)


def batch_table(results: Sequence[Result]) -> str:
    """What the batches are like, and how far the two gradients are apart."""
    lines = [
        "| accuracy | groups without advantage | padding at the batch's width | tokens | "
        "gradient difference, relative L2 | of an element, at most |",
        "| ---: " * 6 + "|",
    ]
    for r in results:
        lines.append(
            f"| {r.accuracy} | {r.zero_advantage_share:.0%} | {r.padding_share:.0%} "
            f"| {r.tokens:,.0f} | {r.gradient.relative_l2:.1e} | {r.gradient.max_abs:.1e} |"
        )
    return "\n".join(lines)


def time_table(results: Sequence[Result]) -> str:
    """Seconds of the optimizer phase; "before" is what TRL does with the rollouts before it."""
    stock, ours = SIDES
    lines = [
        "| accuracy | TRL, s | ours, s | time, TRL / ours | 95% interval | CPU time, TRL / ours | "
        "TRL, tokens/s | ours, tokens/s | TRL before, s |",
        "| ---: " * 9 + "|",
    ]
    for r in results:
        speed = r.tokens_per_second
        lines.append(
            f"| {r.accuracy} | {r.seconds[stock].median:.3g} | {r.seconds[ours].median:.3g} "
            f"| **{r.ratio}** | {r.ratio.low:.2f} to {r.ratio.high:.2f} | {r.cpu_ratio} "
            f"| {speed[stock].median:,.0f} | {speed[ours].median:,.0f} "
            f"| {r.seconds_before[stock].median:.2g} |"
        )
    return "\n".join(lines)


def memory_table(runs: Sequence[dict[str, dict[str, int]]]) -> str:
    """Medians and ratios of the two kinds of peak, over pairs of processes."""
    lines = ["| peak memory | TRL, GB | ours, GB | TRL / ours |", "| --- | ---: | ---: | ---: |"]
    for key, name in (("peak", "of the process"), ("batch", "of these, for the batch")):
        gigabytes = {side: Spread.of([run[side][key] / 1e9 for run in runs]) for side in SIDES}
        ratio = Spread.of([run[SIDES[0]][key] / run[SIDES[1]][key] for run in runs])
        cells = " | ".join(f"{gigabytes[side].median:.2f}" for side in SIDES)
        lines.append(f"| {name} | {cells} | **{ratio}** |")
    return "\n".join(lines)


def peak_table(results: Sequence[Result], peak_tflops: float) -> str:
    """Shares of the device's peak."""
    lines = [
        f"| accuracy | TRL, share of {peak_tflops:g} TFLOP/s | ours | "
        "TRL, rows with an advantage only | ours |",
        "| ---: " * 5 + "|",
    ]
    for r in results:
        shares = [share[side] for share in (r.peak_share, r.peak_share_needed) if share is not None
                  for side in SIDES]  # fmt: skip
        lines.append(f"| {r.accuracy} | " + " | ".join(f"{s:.1%}" for s in shares) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
