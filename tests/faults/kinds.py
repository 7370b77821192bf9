"""The kinds of runs that the fault campaign strikes, each started by the command that people use.

A run is started and goes on by the same command. Its outcome is what it leaves, without what time
decides.
"""

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from launching import kill, start
from leaderboard_runs import RECIPE as BOARD
from leaderboard_runs import SCRIPT as BOARD_SCRIPT
from tiny_models import REPOSITORY

from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks import get_task
from trl_r1zero.data.tasks.chain_arithmetic import solve_trace
from trl_r1zero.trainers import read_metrics

AUTO = ("--resume_from_checkpoint", "auto")
TASK = {
    "task": "chain_arithmetic",
    "task_args": {"num_train": 32, "num_validation": 9},
    "reward": "launch_rewards.odd_digits",
    "gradient_accumulation_steps": 2,
    "learning_rate": 3.0e-3,
    "seed": 3,
    "report_to": "none",
    "use_cpu": True,
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
DPO = {
    "num_eval_pairs": 9,
    "num_train_epochs": 6,
    "train_batch_size": 6,
    "gradient_accumulation_steps": 3,
    "learning_rate": 1.0e-3,
    "eval_every": 4,
    "save_every": 5,
    "seed": 3,
    "report_to": "none",
    "use_cpu": True,
}
EVALUATION = {
    "task": "chain_arithmetic",
    "backend": "transformers",
    "num_examples": 192,
    "max_tokens": 48,
    "batch_size": 4,
}
SWEEP = {**GRPO, "n_grpo_steps": 5, "output_dir": "unused", "save_every": 1}


@dataclass(frozen=True)
class Inputs:
    """What runs start from: folders of models, and files of data, by name."""

    model: Path
    board_model: Path
    traces: Path
    pairs: Path


@dataclass
class Run:
    """A run of one kind in one folder.

    Attributes:
        folder: Its output folder.
        changes: Keys of its recipe that differ from the kind's.
        environment: Variables besides those of this process.
        launched: Whether the process that works is started through accelerate's launcher, where
            the kind leaves the choice.
        process: The one that the newest command has started.
    """

    kind: "Kind"
    inputs: Inputs
    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    launched: bool = False
    process: subprocess.Popen | None = None

    @property
    def log(self) -> Path:
        """What all of its processes have said."""
        return self.folder.with_name(self.folder.name + ".log")

    def start(self) -> None:
        with self.log.open("a") as output:
            self.process = self.kind.begin(self, output)

    def kill(self) -> None:
        if self.process is not None:
            kill(self.process)

    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def progress(self) -> int:
        return self.kind.progress(self.folder)

    def outcome(self) -> Any:
        return self.kind.outcome(self.folder)

    def worker(self) -> psutil.Process | None:
        """The process that does the work: the lowest one of those that the command started."""
        assert self.process is not None
        try:
            one = psutil.Process(self.process.pid)
            for _ in range(self.kind.depth + self.launched):
                one = one.children()[0]
        except (psutil.NoSuchProcess, IndexError):
            return None
        return one


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        begin: Starts or goes on with a run; what it says goes to a file.
        progress: A count that grows as a run goes on.
        outcome: What two runs of this kind have to have in common.
        launches: Whether accelerate's launcher can start it.
        depth: How many processes are between the command and the one that does the work.
    """

    name: str
    begin: Callable[[Run, Any], subprocess.Popen]
    progress: Callable[[Path], int]
    outcome: Callable[[Path], Any]
    launches: bool = False
    depth: int = 0


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics without what time decides, and without how many rewards failed,
    which is what befell some runs."""
    left_out = re.compile("second|_idle_share|^train_r|reward_failures")
    return [
        {key: value for key, value in line.items() if not left_out.search(key)}
        for line in read_metrics(folder)
        if "train_runtime" not in line
    ]


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _training(name: str, script: str, recipe: dict, outcome: Any = lines_of) -> Kind:
    def begin(run: Run, output: Any) -> subprocess.Popen:
        data = {"sft.py": run.inputs.traces, "dpo.py": run.inputs.pairs}.get(script)
        whole = {**recipe, **({"train_data": str(data)} if data else {}), **run.changes}
        model = run.inputs.board_model if script == BOARD_SCRIPT else run.inputs.model
        go_on = () if script == BOARD_SCRIPT else AUTO
        return start(
            whole,
            run.folder,
            model,
            *go_on,
            script=script,
            output=output,
            environment=run.environment,
            launched=run.launched,
        )

    def progress(folder: Path) -> int:
        return _num_lines(folder / "metrics.jsonl")

    return Kind(name, begin, progress, outcome, launches=True)


def _command(run: Run, output: Any, *arguments: str) -> subprocess.Popen:
    paths = [str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.Popen(
        [sys.executable, "-m", "trl_r1zero", *arguments],
        cwd=run.folder.parent,
        env={**environment, **run.environment},
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def _begin_evaluation(run: Run, output: Any) -> subprocess.Popen:
    keys = {**EVALUATION, "model": run.inputs.model, "output_dir": run.folder, **run.changes}
    return _command(run, output, "eval", *(f"--{key}={value}" for key, value in keys.items()))


def _rows_of(folder: Path) -> Any:
    """Without what time decides, or in its last digits which rows are computed together."""
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    left_out = re.compile("second|entropy|log_prob")
    return [
        {key: value for key, value in row.items() if not left_out.search(key)}
        for row in [*rows, summary]
    ]


def _begin_sweep(run: Run, output: Any) -> subprocess.Popen:
    """Two runs, one after the other."""
    base = run.folder.with_name(run.folder.name + "-recipe")
    base.mkdir(exist_ok=True)
    recipe = {**SWEEP, "model_name_or_path": str(run.inputs.model), **run.changes}
    (base / "grpo.yaml").write_text(yaml.safe_dump(recipe))
    experiment = {
        "question": "Which seed?",
        "script": str(REPOSITORY / "recipes" / "grpo.py"),
        "scales": {"small": {"recipe": "grpo.yaml", "seeds": [3, 4]}},
    }
    (base / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    path = str(base / "experiment.yaml")
    return _command(run, output, "sweep", path, "--root", str(run.folder))


def _sweep_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("metrics.jsonl"))


def _submission(folder: Path) -> Any:
    """Its metrics, and the answers that it is scored by."""
    return lines_of(folder), (folder / "submission" / "responses.jsonl").read_text()


KINDS = {
    kind.name: kind
    for kind in [
        _training("grpo", "grpo.py", GRPO),
        _training("sft", "sft.py", SFT),
        _training("ei", "expert_iteration.py", EI),
        _training("dpo", "dpo.py", DPO),
        Kind(
            "eval",
            _begin_evaluation,
            lambda folder: _num_lines(folder / "results.jsonl"),
            _rows_of,
        ),
        Kind(
            "sweep",
            _begin_sweep,
            lambda folder: sum(map(_num_lines, _sweep_files(folder))),
            lambda folder: [lines_of(path.parent) for path in _sweep_files(folder)],
            depth=2,
        ),
        _training("leaderboard", BOARD_SCRIPT, {**BOARD, "n_grpo_steps": 12}, _submission),
    ]
}


def make_traces(path: Path) -> Path:
    """Solved problems of the task's training split, for SFT."""
    prompt = load_prompt("chain_arithmetic")
    rows = [
        {
            "prompt": prompt.format(example.question),
            "response": solve_trace(example.question),
            "ground_truth": example.ground_truth,
        }
        for example in get_task("chain_arithmetic", **TASK["task_args"]).load()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_pairs(folder: Path) -> Path:
    """Preferences in the form of HH, for DPO."""
    folder.mkdir()
    for name in ("harmless-base", "helpful-base"):
        starts = [f"\n\nHuman: {name} {number}?\n\nAssistant:" for number in range(20)]
        rows = [
            {"chosen": f"{start} yes {number % 7}", "rejected": f"{start} no"}
            for number, start in enumerate(starts)
        ]
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder
