"""Seconds of training until the embedded task is learned, with TRL's `GRPOTrainer` and with ours.

    make quickstart                       # makes the base policy that all runs start from
    python benchmarks/end_to_end.py --seeds 0 1 2 --output_dir runs/benchmarks/end_to_end

Three ways to train: stock TRL with transformers generation; `R1ZeroGRPOTrainer` with transformers;
the same with a vLLM server that the run starts. Model, data, batch, group size, loss, learning rate
and sampling are those of recipes/quickstart/grpo.yaml for all (TRL's names in `train_with_trl`).

Each run is a process of its own, one at a time, and the order of the methods changes from seed to
seed. Every `--eval_every` steps the clocks stand still while one and the same evaluation samples an
answer to each of 512 validation questions; a run ends at the first evaluation that reaches the
target. The clocks start with the first step: loading, and the server's start, are reported apart.
CPU seconds are those of the process and of all processes under it, such as the server.

A run whose result is in the output folder already is not done again.
"""

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPES = REPOSITORY / "recipes" / "quickstart"
BASE_POLICY = REPOSITORY / "runs" / "quickstart" / "base_policy" / "final"
METHODS = {
    "trl": "TRL, transformers",
    "ours": "ours, transformers",
    "ours_vllm": "ours, vLLM server",
}
# Rows of a micro-batch in TRL, the quickstart's.
STOCK_ROWS = 64
# Fields of our config that TRL's has under the same name and with the same meaning.
SAME_SETTINGS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "max_steps", "max_grad_norm"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "bf16", "use_cpu"),
    *("num_generations", "max_completion_length", "temperature", "beta"),
    *("gradient_checkpointing", "seed", "output_dir", "logging_steps", "report_to"),
    "disable_tqdm",
)


def cpu_seconds() -> float:
    """Of this process and of those under it that run."""
    import psutil

    total = time.process_time()
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:  # it has just ended
            continue
        total += times.user + times.system
    return total


@dataclass
class Point:
    """A validation: optimizer steps and seconds of training before it."""

    step: int
    wall: float
    cpu: float
    accuracy: float


@dataclass
class Run:
    """One training run.

    Attributes:
        method, seed: Which.
        target: The accuracy at which it ends.
        setup_wall: Seconds to load the model and make the trainer, and to start the server.
        setup_cpu: CPU seconds of the same.
        points: The validations.
    """

    method: str
    seed: int
    target: float
    setup_wall: float = 0.0
    setup_cpu: float = 0.0
    points: list[Point] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> Point | None:
        """The first validation at the target or above it."""
        return next((point for point in self.points if point.accuracy >= self.target), None)


# One run


def train(arguments: argparse.Namespace) -> None:
    """What the process of one run does."""
    from trl_r1zero.evaluation.environment import environment

    (seed,) = arguments.seeds
    run = Run(arguments.method, seed, arguments.target, environment=environment())
    settings = {
        "config": RECIPES / ("grpo-server.yaml" if run.method == "ours_vllm" else "grpo.yaml"),
        "model_name_or_path": arguments.base_policy,
        "seed": run.seed,
        "n_grpo_steps": arguments.max_steps,
        "eval_every": "null",
        "save_every": "null",
        "log_rollouts_every": "null",
        "disable_tqdm": "true",
    }
    with tempfile.TemporaryDirectory() as folder:
        argv = [f"--{key}={value}" for key, value in settings.items()]
        start = train_with_trl if run.method == "trl" else train_with_ours
        start(run, [*argv, f"--output_dir={folder}"], arguments.eval_every)
    path = result_path(arguments, run.method, run.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(run), indent=2) + "\n")


def parse_settings(argv: Sequence[str]) -> Any:
    """The quickstart's config, task and model, as recipes/grpo.py reads them."""
    from trl import ModelConfig

    from trl_r1zero import R1ZeroGRPOConfig
    from trl_r1zero.recipe import parse_recipe
    from trl_r1zero.recipe.task_arguments import TaskArguments

    return parse_recipe((R1ZeroGRPOConfig, TaskArguments, ModelConfig), argv).instances


def train_with_ours(run: Run, argv: Sequence[str], eval_every: int) -> None:
    from trl_r1zero import R1ZeroGRPOTrainer
    from trl_r1zero.recipe.loading import load_tokenizer, model_settings

    config, task_args, model_args = parse_settings(argv)
    wall, cpu = time.perf_counter(), cpu_seconds()
    tokenizer, task = load_tokenizer(model_args), task_args.load()
    trainer = R1ZeroGRPOTrainer(
        **model_settings(config, model_args),
        reward_funcs=task.reward,
        train_dataset=task.train_dataset,
        eval_dataset=task.eval_dataset,
        processing_class=tokenizer,
        stop=task.prompt.stop,
    )
    run.setup_wall, run.setup_cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    trainer.add_callback(make_clock(run, make_evaluation(tokenizer, task), eval_every))
    trainer.train()


def train_with_trl(run: Run, argv: Sequence[str], eval_every: int) -> None:
    """The same settings in TRL's terms."""
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    from trl_r1zero.recipe.loading import load_tokenizer

    config, task_args, model_args = parse_settings(argv)
    wall, cpu = time.perf_counter(), cpu_seconds()
    tokenizer, task = load_tokenizer(model_args), task_args.load()
    model = AutoModelForCausalLM.from_pretrained(model_args.model_name_or_path)
    # TRL's transformers generation has no stop strings. The embedded task's is one token, which can
    # be a further end-of-sequence token: of the model, before there is a trainer, because one that
    # `generation_kwargs` names ends sampling but not the completion, and padding is trained on.
    ends = [tokenizer.eos_token_id]
    for stop in task.prompt.stop:
        ids = tokenizer(stop, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(f"the stop string {stop!r} has to be one token for TRL, it is {ids}")
        ends += ids
    model.generation_config.eos_token_id = ends
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=task.reward,
        args=GRPOConfig(
            **{name: getattr(config, name) for name in SAME_SETTINGS},
            loss_type="dr_grpo",  # over max_completion_length, as masked_normalize
            scale_rewards="none",
            per_device_train_batch_size=STOCK_ROWS,
            gradient_accumulation_steps=config.rollout_batch_size // STOCK_ROWS,
            generation_kwargs={"min_new_tokens": config.min_tokens},
            save_strategy="no",
        ),
        train_dataset=task.train_dataset,
        processing_class=tokenizer,
    )
    run.setup_wall, run.setup_cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    trainer.add_callback(make_clock(run, make_evaluation(tokenizer, task), eval_every))
    trainer.train()


def make_evaluation(tokenizer: Any, task: Any) -> Callable[[Any], float]:
    """A function of the model: its accuracy on 512 questions, the same for every method."""
    from trl_r1zero.evaluation import evaluate
    from trl_r1zero.generation import SamplingConfig, TransformersEngine
    from trl_r1zero.grading import Grader

    sampling = SamplingConfig(temperature=1.0, max_tokens=64, stop=task.prompt.stop)
    examples = task.eval_dataset.select(range(512))
    grader = Grader(task.reward.reward_fn)

    def accuracy(model: Any) -> float:
        was_training = model.training
        model.eval()
        engine = TransformersEngine(model, tokenizer, eos_token_ids=[tokenizer.eos_token_id])
        rows = evaluate(engine, examples, grader, sampling).rows
        model.train(was_training)
        return statistics.fmean(row.correct for row in rows)

    return accuracy


def make_clock(run: Run, accuracy: Callable[[Any], float], every: int) -> Any:
    """A callback that evaluates outside of the clock, and ends the run at the target."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        wall = cpu = 0.0  # of the steps so far

        def resume(self) -> None:
            self._wall, self._cpu = time.perf_counter(), cpu_seconds()

        def pause(self) -> None:
            self.wall += time.perf_counter() - self._wall
            self.cpu += cpu_seconds() - self._cpu

        def evaluate(self, step: int, model: Any) -> None:
            point = Point(step, self.wall, self.cpu, accuracy(model))
            run.points.append(point)
            print(f"{run.method}, seed {run.seed}, step {step}: accuracy {point.accuracy:.3f} "
                  f"after {point.wall:.1f} s", file=sys.stderr, flush=True)  # fmt: skip

        def on_train_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
        ) -> None:
            self.evaluate(0, model)
            self.resume()

        def on_step_end(
            self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
        ) -> None:
            if state.global_step % every == 0 or state.global_step == state.max_steps:
                self.pause()
                self.evaluate(state.global_step, model)
                control.should_training_stop |= run.reached is not None
                self.resume()

    return Clock()


# All runs


def result_path(arguments: argparse.Namespace, method: str, seed: int) -> Path:
    return Path(arguments.output_dir, f"{method}-seed_{seed}.json")


def run_all(arguments: argparse.Namespace) -> list[Run]:
    runs = []
    for number, seed in enumerate(arguments.seeds):
        shift = number % len(arguments.methods)
        for method in arguments.methods[shift:] + arguments.methods[:shift]:
            path = result_path(arguments, method, seed)
            if not path.is_file():
                command = [sys.executable, str(Path(__file__).resolve()), "--method", method]
                for name in ("target", "max_steps", "eval_every", "base_policy", "output_dir"):
                    command += [f"--{name}", str(getattr(arguments, name))]
                environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
                command += ["--seeds", str(seed)]
                # TRL prints its metrics; the clock's lines go to stderr.
                subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            stored = json.loads(path.read_text())
            runs.append(Run(**{**stored, "points": [Point(**p) for p in stored["points"]]}))
    return runs


def markdown(runs: Sequence[Run]) -> str:
    """One row for each method: means over seeds with their standard errors."""
    target = runs[0].target
    first = runs[0].environment
    packages = first["packages"]
    lines = [
        f"{first['device']} ({first['platform']}), torch {packages['torch']}, TRL "
        f"{packages['trl']}, vLLM {packages.get('vllm')}, commit {first['commit']}, "
        f"{first['started']}.",
        "",
        f"| | seeds | reached {target:.0%} | steps | wall, s | CPU, s | set-up, s | "
        "wall per step, s | CPU per step, s |",
        "| --- |" + " ---: |" * 8,
    ]
    for method, name in METHODS.items():
        own = [run for run in runs if run.method == method]
        if not own:
            continue
        reached = [run.reached for run in own if run.reached is not None]
        # A mean over the runs that got there would flatter a method of which some did not.
        points = reached if len(reached) == len(own) else []
        lines.append(
            f"| {name} | {len(own)} | {len(reached)} "
            f"| {mean_and_error([p.step for p in points], 1)} "
            f"| {mean_and_error([p.wall for p in points], 1)} "
            f"| {mean_and_error([p.cpu for p in points], 1)} "
            f"| {mean_and_error([run.setup_wall for run in own], 1)} "
            f"| {mean_and_error([run.points[-1].wall / run.points[-1].step for run in own], 2)} "
            f"| {mean_and_error([run.points[-1].cpu / run.points[-1].step for run in own], 2)} |"
        )
    return "\n".join(lines)


def mean_and_error(values: Sequence[float], digits: int) -> str:
    """Mean ± standard error; one value has none, and no value is a dash."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.{digits}f}"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    add("--target", type=float, default=0.75, help="accuracy that ends a run (default: 0.75)")
    add("--max_steps", type=int, default=80, help="steps that end it anyway (default: 80)")
    add("--eval_every", type=int, default=2, help="steps between evaluations (default: 2)")
    add("--threads", type=int, default=1, help="OMP_NUM_THREADS of the runs (default: 1)")
    add("--base_policy", type=Path, default=BASE_POLICY, help="the model that all start from")
    add("--output_dir", type=Path, default=REPOSITORY / "runs" / "benchmarks" / "end_to_end")
    add("--method", choices=METHODS, help=argparse.SUPPRESS)  # what the process of a run is told
    arguments = parser.parse_args(argv)
    if not (arguments.base_policy / "config.json").is_file():
        parser.error(f"there is no model in {arguments.base_policy}; `make quickstart` makes it")
    if "ours_vllm" in arguments.methods and importlib.util.find_spec("vllm") is None:
        parser.error("vLLM is not installed: `make vllm`, or leave out ours_vllm by --methods")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    if arguments.method is not None:
        train(arguments)
        return
    print(markdown(run_all(arguments)))


if __name__ == "__main__":
    main()
