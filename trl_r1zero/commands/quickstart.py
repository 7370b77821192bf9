"""A first run, from nothing: `trl-r1zero quickstart`.

    trl-r1zero quickstart [--seed N]

Makes a small model and its traces, trains the base policy on these, and that with GRPO, below
runs/quickstart. What was done already is not done again; what broke off goes on.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from trl_r1zero.recipe.bundled import RECIPES

from .errors import command_line

FOLDER = Path("runs") / "quickstart"


def main(argv: Sequence[str] | None = None, program: str = "trl-r1zero quickstart") -> int:
    """Run what is missing; the exit status of the part that failed, or 0."""
    parser = command_line(program, __doc__)
    parser.add_argument("--seed", type=int, default=0, help="of GRPO [%(default)s]")
    args = parser.parse_args(argv)
    # The model is too small to gain from more threads, which on busy cores wait for one another.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    for command in commands(args.seed):
        done = subprocess.run([sys.executable, *command], env=environment, check=False)
        if done.returncode != 0:
            return done.returncode
    return 0


def commands(seed: int) -> list[list[str]]:
    """The commands to run, in order, behind Python's name."""
    run, auto = ["-m", "trl_r1zero"], ["--resume_from_checkpoint", "auto"]
    folder = ["--seed", str(seed), "--output_dir", str(FOLDER / f"seed_{seed}")]
    grpo = [*run, "grpo", "--config", "quickstart/grpo", *folder, *auto]
    if (FOLDER / "base_policy" / "final" / "config.json").is_file():
        return [grpo]
    inputs = str(RECIPES / "quickstart" / "make_inputs.py")
    return [
        [inputs, "--output_dir", str(FOLDER / "inputs")],
        [*run, "sft", "--config", "quickstart/sft-base_policy", *auto],
        grpo,
    ]
