"""The fault campaign: what strikes a run and where, and what must hold afterwards.

Each strike starts a run by the command that people use, strikes it at a random point of its way,
starts it again until it ends, and compares its metrics with those of a run that nothing struck. In
a strike by a signal that asks (SIGTERM, SIGINT, SIGUSR1) the run has to end by itself, with one
line that says how to go on.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from launching import kill, launch, start

from trl_r1zero.trainers import read_metrics

END_SECONDS = 120.0
TASK = {
    "task": "chain_arithmetic",
    "task_args": {"num_train": 32, "num_validation": 9},
    "reward": "launch_rewards.odd_digits",
    "gradient_accumulation_steps": 2,
    "learning_rate": 3.0e-3,
    "seed": 3,
    "report_to": "none",
}
GRPO = {
    **TASK,
    "n_grpo_steps": 12,
    "rollout_batch_size": 32,
    "group_size": 4,
    "train_batch_size": 16,
    "loss_type": "grpo_clip",
    "max_completion_length": 12,
    "eval_every": 2,
    "save_every": 3,
}
EI = {
    **TASK,
    "reward": "launch_rewards.many_digits",
    "learning_rate": 1.0e-2,
    "n_ei_steps": 4,
    "ei_batch_size": 16,
    "group_size": 8,
    "sft_epochs_per_step": 3,
    "train_batch_size": 8,
    "max_completion_length": 16,
    "save_every_updates": 4,
}
SFT = {
    **TASK,
    "num_train_epochs": 8,
    "train_batch_size": 8,
    "eval_every": 4,
    "eval_max_completion_length": 12,
    "save_every": 5,
}
# Script -> recipe; that of SFT lacks its data.
RECIPES = {"grpo.py": GRPO, "sft.py": SFT, "expert_iteration.py": EI}
ASKS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Where: the process that trains, or its launcher, whose end is the trainer's.
TRAINER, LAUNCHER = "trainer", "launcher"


@dataclass(frozen=True)
class Strike:
    """A signal to a process of a run, at a share of its lines of metrics."""

    script: str
    number: signal.Signals
    at: str
    share: float
    seed: int

    def __str__(self) -> str:
        return f"{self.script}-{self.number.name}-{self.at}-{self.share:.2f}"


def strikes(count: int, seed: int = 0) -> Iterator[Strike]:
    """So many strikes over all scripts, signals and places, at random points."""
    chance = random.Random(seed)
    for number in range(count):
        script = list(RECIPES)[number % len(RECIPES)]
        what = chance.choice([signal.SIGKILL, *ASKS])
        yield Strike(script, what, chance.choice([TRAINER, LAUNCHER]), chance.random(), number)


def comparable(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run without what time decides."""
    return [
        {k: v for k, v in line.items() if "second" not in k and not k.startswith("train_r")}
        for line in read_metrics(folder)
        if "train_runtime" not in line
    ]


def whole_run(script: str, recipe: dict, folder: Path, model: Path) -> list[dict[str, Any]]:
    """The lines of a run that nothing strikes."""
    done = launch(recipe, folder, model, script=script)
    assert done.returncode == 0, done.stderr[-4000:]
    return comparable(folder)


def strike(one: Strike, recipe: dict, folder: Path, model: Path, num_lines: int) -> str:
    """Strike a run, and let it go on to its end.

    Returns:
        What the run that was struck has said.
    """
    auto = ("--resume_from_checkpoint", "auto")
    log = folder.with_suffix(".log")
    with log.open("w") as output:
        process = start(recipe, folder, model, *auto, script=one.script, output=output)
        try:
            _wait_for(lambda: _lines(folder) >= one.share * num_lines or not _runs(process))
            time.sleep(random.Random(one.seed).uniform(0, 0.3))
            trainer = _trainer(process)
            target = psutil.Process(process.pid) if one.at == LAUNCHER else trainer
            if target is not None:
                target.send_signal(one.number)
            # Nothing of it is left, though only one of its processes was struck.
            _wait_for(lambda: not _runs(process) and (trainer is None or not _lives(trainer)))
        finally:
            kill(process)
    done = launch(recipe, folder, model, *auto, script=one.script)
    assert done.returncode == 0, done.stderr[-4000:]
    return log.read_text()


def _wait_for(holds: Any) -> None:
    deadline = time.monotonic() + END_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _runs(process: subprocess.Popen) -> bool:
    return process.poll() is None


def _trainer(process: subprocess.Popen) -> psutil.Process | None:
    """The launcher's child, if it has one yet."""
    try:
        children = psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        return None
    return children[0] if children else None


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def main() -> None:
    """Run the campaign's tests, and print figures for docs/reliability.md."""
    began = time.monotonic()
    environment = {**os.environ, "TRL_R1ZERO_STRIKES": os.environ.get("TRL_R1ZERO_STRIKES", "60")}
    command = [sys.executable, "-m", "pytest", "-q", str(Path(__file__).parent), *sys.argv[1:]]
    status = subprocess.run(command, env=environment, check=False).returncode
    minutes = (time.monotonic() - began) / 60
    print(json.dumps({"strikes": environment["TRL_R1ZERO_STRIKES"], "minutes": round(minutes, 1)}))
    raise SystemExit(status)


if __name__ == "__main__":
    main()
