"""What only a GPU can show, by one command that needs no network: `make gpu-check`.

    python tests/gpu/check.py                     # on one GPU, within 8 minutes
    python tests/gpu/check.py --device cpu        # a tiny model: proves the script itself
    python tests/gpu/check.py --only optimizer,equal --output runs/gpu_check

Random weights at Qwen2.5-Math-1.5B's shape. The parts come in the order of their worth, each in a
process with a time limit of its own; one that fails or hangs stops no other. After each part
`gpu_check.json` and `gpu_check.md` in the output folder are written anew. Parts that need vLLM are
skipped where it is not installed. Exit status 1 if a part failed or was too late.
"""

import argparse
import importlib
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
# A part's process needs them too: benchmarks/ has the optimizer phase beside TRL's.
for _folder in (HERE, REPOSITORY / "benchmarks", REPOSITORY):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

from check_machine import ask_about_machine  # noqa: E402
from check_report import JSON_FILE, TABLE_FILE, exit_status, write_report  # noqa: E402
from check_running import Part, PartResult, die_with_parent, run_parts  # noqa: E402

SHAPES = {"cuda": "qwen2.5-math-1.5b", "cpu": "tiny"}
# On a GPU the limits add up to 8 minutes less ten seconds for what is between the parts; a CPU,
# which others may use too, takes what it takes.
TOTAL_SECONDS = {"cuda": 470.0, "cpu": None}
_CPU_LIMIT_SECONDS = 300.0


@dataclass(frozen=True)
class PartKind:
    """A part as the list below has it.

    Attributes:
        name, title: As `Part`'s.
        module: Of this folder; its function `name` does it.
        limit_seconds: On a GPU.
        needs_vllm: Whether it starts a server.
    """

    name: str
    title: str
    module: str
    limit_seconds: float
    needs_vllm: bool = False


PARTS = (
    PartKind("grpo", "3 GRPO steps, server and trainer on one device", "check_server", 120, True),
    PartKind("sync", "time of a weight update, and the probe", "check_server", 120, True),
    PartKind("optimizer", "optimizer phase beside TRL's", "check_training", 70),
    PartKind("memory", "peak memory against the memory model", "check_memory", 35),
    PartKind("equal", "packing and fused head equal the plain path", "check_training", 35),
    PartKind("kill", "kill -9 of the engine while it samples", "check_kill", 90, True),
)


def skip_reason(kind: PartKind, device: str, vllm: str | None) -> str | None:
    """Why a part cannot run here; None if it can.

    Args:
        kind: The part.
        device: cuda or cpu.
        vllm: The version of the installed vLLM, `+cpu` at its end if it is a build for CPUs.
    """
    if not kind.needs_vllm:
        return None
    if vllm is None:
        return "vLLM is not installed"
    if vllm.endswith("+cpu") != (device == "cpu"):
        build = "CPUs" if vllm.endswith("+cpu") else "GPUs"
        return f"vLLM {vllm} is a build for {build}"
    return None


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=SHAPES, help="default: cuda if torch sees a device, else cpu")
    add("--output", type=Path, default=Path("runs/gpu_check"), help="default: runs/gpu_check")
    add("--only", help="names of parts, comma between; all: "
        + ",".join(kind.name for kind in PARTS))  # fmt: skip
    add("--model_shape", choices=SHAPES.values(),
        help="default: qwen2.5-math-1.5b on cuda, tiny on cpu")  # fmt: skip
    add("--run_part", choices=[kind.name for kind in PARTS], help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    known = [kind.name for kind in PARTS]
    arguments.only = known if arguments.only is None else arguments.only.split(",")
    unknown = [name for name in arguments.only if name not in known]
    if unknown:
        parser.error(f"--only: unknown part {unknown[0]!r}; there are {', '.join(known)}")
    if arguments.device is None or arguments.device == "cuda":
        import torch

        available = torch.cuda.is_available()
        if arguments.device == "cuda" and not available:
            parser.error("--device cuda: torch sees no CUDA device; --device cpu tries the script")
        arguments.device = "cuda" if available else "cpu"
    arguments.model_shape = arguments.model_shape or SHAPES[arguments.device]
    if (arguments.device, arguments.model_shape) == ("cpu", "qwen2.5-math-1.5b"):
        parser.error("--model_shape qwen2.5-math-1.5b takes hours on a CPU; give tiny, or nothing")
    arguments.output = arguments.output.resolve()
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if arguments.run_part is not None:
        return run_part(arguments)
    if arguments.device == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if (arguments.output / JSON_FILE).is_file():  # what an earlier check left
        shutil.rmtree(arguments.output / "parts", ignore_errors=True)
    about = {**ask_about_machine(arguments.device), "model_shape": arguments.model_shape}
    vllm = about["packages"].get("vllm")
    parts = [make_part(kind, arguments, vllm) for kind in PARTS if kind.name in arguments.only]
    results: list[PartResult] = []
    names = [part.name for part in parts]
    write_report(arguments.output, about, results, names)

    def report(result: PartResult) -> None:
        results.append(result)
        write_report(arguments.output, about, results, names)
        said = result.reason or result.summary
        print(f"{result.name}: {result.status} after {result.seconds:.0f} s. {said}", flush=True)

    print(f"{len(parts)} parts on {about['device_name']}, into {arguments.output}", flush=True)
    run_parts(
        parts,
        arguments.output / "parts",
        total_seconds=TOTAL_SECONDS[arguments.device],
        on_result=report,
    )
    print("\n" + (arguments.output / TABLE_FILE).read_text(encoding="utf-8"))
    print(f"All figures: {arguments.output / JSON_FILE}")
    return exit_status(results)


def make_part(kind: PartKind, arguments: argparse.Namespace, vllm: str | None) -> Part:
    command = [sys.executable, str(Path(__file__).resolve()), "--run_part", kind.name]
    command += ["--device", arguments.device, "--model_shape", arguments.model_shape]
    on_cpu = arguments.device == "cpu"
    return Part(
        kind.name,
        kind.title,
        [*command, "--output", str(arguments.output)],
        _CPU_LIMIT_SECONDS if on_cpu else kind.limit_seconds,
        skip_reason(kind, arguments.device, vllm),
    )


def run_part(arguments: argparse.Namespace) -> int:
    """A part, in its own process."""
    from check_setup import Setup, carry_out

    die_with_parent()
    (kind,) = (kind for kind in PARTS if kind.name == arguments.run_part)
    setup = Setup(arguments.device, arguments.model_shape, arguments.output)
    return carry_out(getattr(importlib.import_module(kind.module), kind.name), setup, kind.name)


if __name__ == "__main__":
    sys.exit(main())
