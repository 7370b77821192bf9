"""Which problems a GRPO run samples: docs/problem_sampling.md.

All depends on the seed and on graded rollouts, which every process has, and what a step learned
counts once the step has all its rollouts: so processes agree, and a run that goes on from a
checkpoint does what it would have done.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.nn import Module
from transformers import TrainerCallback

from trl_r1zero.common.processes import from_main_process
from trl_r1zero.common.run_files import FILTER_FILE
from trl_r1zero.data.bad_rows import BadRowsError
from trl_r1zero.evaluation.files import json_text, write_atomically
from trl_r1zero.functional import compute_group_advantages
from trl_r1zero.generation import SamplingConfig, row_seeds
from trl_r1zero.rewards.registry import is_correct, reward_identity

from .pass_rates import file_of, fingerprint, measured, weights_identity
from .problem_choice import ProblemChoice, chosen_groups
from .problem_settings import Curriculum, DifficultyFilter, DynamicSampling, ProblemSettings
from .rollouts import Rollout, RolloutBatch
from .timing import StepTimer

STATE_KEY = "problem_sampling"  # among the callbacks' states in trainer_state.json
_ROWS_PER_FILE = 1024  # completions, after which pass rates are written
# Samples and grades one completion for each of this process's examples, by seeds: the rollouts of
# all processes, without advantages.
SampleFn = Callable[[Sequence[dict[str, Any]], Sequence[int], str], RolloutBatch]


def passed(group: Sequence[Rollout]) -> float:
    """The share of a group that is right."""
    return sum(is_correct(row.rewards) for row in group) / len(group)


def informative(groups: Sequence[Sequence[Rollout]], metric: str, args: Any) -> list[bool]:
    """Which groups of graded rollouts teach something, by the metric `advantage` (that of a trained
    response, as the trainer's config has it, is not 0), or `accuracy` (they are right and wrong).
    """
    if metric == "accuracy":
        return [0 < passed(group) < 1 for group in groups]
    rewards = torch.tensor([row.training_reward for group in groups for row in group])
    size = len(groups[0])
    advantages = compute_group_advantages(rewards, size, args.loss.advantage, args.advantage_eps)
    return [
        any(row.trained and value != 0 for row, value in zip(group, values, strict=True))
        for group, values in zip(groups, advantages.view(-1, size).tolist(), strict=True)
    ]


@dataclass
class _Sampled:
    """What was sampled for a rollout batch so far: problems, and the group of each."""

    problems: list[int] = field(default_factory=list)
    groups: list[list[Rollout]] = field(default_factory=list)
    informative: list[bool] = field(default_factory=list)
    rewards: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # of each round

    def statistics(self, wanted: int) -> dict[str, float]:
        """The metrics of all that was sampled for a batch of `wanted` groups."""
        count, good = len(self.groups), sum(self.informative)
        logged = self.rewards[0][1]
        return {
            **{name: sum(n * each[name] for n, each in self.rewards) / count for name in logged},
            "problems/rounds": len(self.rewards),
            "problems/sampled_groups": count,
            "problems/informative_groups": good,
            "problems/filled_groups": max(wanted - good, 0),
            "problems/sampled_tokens": sum(row.num_tokens for row in chain(*self.groups)),
            "problems/accuracy": sum(map(passed, self.groups)) / count,
        }


@dataclass(eq=False)
class ProblemSampler(TrainerCallback):
    """Makes rollout batches of the problems that `problem_sampling` chooses."""

    settings: ProblemSettings
    args: Any  # the trainer's
    dataset: Dataset  # the training problems
    accelerator: Accelerator
    sample: SampleFn
    say: Callable[[str], None]
    timer: StepTimer

    def __post_init__(self) -> None:
        self._wanted = self.args.rollout_batch_size // self.args.group_size

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up a run, new or from a checkpoint, once the model is ready.

        Raises:
            ValueError: The checkpoint is of a run without `problem_sampling`.
            BadRowsError: The filter leaves fewer problems than a rollout batch has.
        """
        settings = self.settings
        there: dict[str, Any] = {}
        self._kept = list(range(len(self.dataset)))
        there["rates"] = [(settings.curriculum or Curriculum()).first_rate] * len(self._kept)
        if state.global_step > 0:
            if STATE_KEY not in state.stateful_callbacks:
                raise ValueError(
                    "the checkpoint is of a run without problem_sampling, and does not say which "
                    "problems come next; remove problem_sampling, or start anew"
                )
            there = json.loads(state.stateful_callbacks[STATE_KEY]["state"])
            self._kept = there.pop("kept")
        elif settings.filter is not None:
            there["rates"], tokens = self._filter(settings.filter)
            # Whoever measured them: the run must not depend on what others have left on disk.
            state.num_input_tokens_seen += tokens
        shuffle, seed = bool(self.args.shuffle_dataset), self.args.seed
        self._choice = ProblemChoice(seed, shuffle, settings.curriculum, settings.replay, **there)
        self.timer.collect()  # pass rates are no part of the first update

    # Rollout batches

    def collect(self, step: int, state: Any) -> RolloutBatch:
        """The rollout batch of a GRPO step, from 0, without advantages; the trainer's `state` gets
        what a checkpoint needs. A collective call."""
        dynamic = self.settings.dynamic or DynamicSampling(max_rounds=1)
        choice, sampled, size = self._choice.copied(), _Sampled(), self.args.group_size
        replayed = 0
        while len(sampled.rewards) < dynamic.max_rounds and sum(sampled.informative) < self._wanted:
            count = math.ceil((self._wanted - sum(sampled.informative)) * dynamic.oversampling)
            again: list[int] = []
            if not sampled.rewards:
                count, again = self._wanted, choice.replays(self._wanted)
                replayed = len(again)
            drawn = again + choice.draw(step, count - len(again), {*sampled.problems, *again})
            if not drawn:
                break
            first = len(sampled.groups) * size
            numbers = range(first, first + len(drawn) * size)
            seeds = row_seeds(self.args.seed, "rollout", step, numbers)
            rows = [self._kept[problem] for problem in drawn]
            groups, rewards = self._groups(rows, size, seeds, f"Rollouts of GRPO step {step + 1}")
            sampled.informative += informative(groups, dynamic.metric, self.args)
            sampled.problems += drawn
            sampled.groups += groups
            sampled.rewards.append((len(drawn), rewards))
        metrics = sampled.statistics(self._wanted) | choice.learn(
            sampled.problems, [passed(group) for group in sampled.groups], replayed
        )
        self._choice = choice
        kept = json.dumps({"kept": self._kept, **choice.state()})
        state.stateful_callbacks[STATE_KEY] = {"state": kept}
        chosen = chosen_groups(sampled.informative, self._wanted)
        rollouts = [row for group in chosen for row in sampled.groups[group]]
        tokens = int(metrics["problems/sampled_tokens"])
        return RolloutBatch(rollouts, size, metrics, sampled_tokens=tokens)

    def _groups(
        self, rows: Sequence[int], size: int, seeds: Sequence[int], description: str
    ) -> tuple[list[list[Rollout]], dict[str, float]]:
        """Groups of `size` rollouts of rows of the data set, the same on every process, and what
        the reward functions logged."""
        total, world = len(rows) * size, self.accelerator.num_processes
        # Equally many on each process: the surplus are the first ones again, and is dropped below.
        share = -(-total // world)
        start = self.accelerator.process_index * share
        numbers = [number % total for number in range(start, start + share)]
        examples = [self.dataset[rows[number // size]] for number in numbers]
        batch = self.sample(examples, [seeds[number] for number in numbers], description)
        starts = range(0, total, size)
        return [batch.rollouts[first : first + size] for first in starts], batch.metrics

    # The difficulty filter

    def identify(self, model: Any, sampling: SamplingConfig, rewards: Sequence[Any]) -> None:
        """Note what a new run's pass rates are of; a collective call, before training begins."""
        if (settings := self.settings.filter) is None:
            return
        args, name = self.args, str(model.config.name_or_path)
        # A `TRLReward` stands for its function, a reward model for its config.
        names = [
            str(one.config) if isinstance(one, Module) else reward_identity(function)
            for one in rewards
            for function in [getattr(one, "reward_fn", one)]
        ]
        rows = ([row["prompt"], row["ground_truth"]] for row in self.dataset)
        texts = (json.dumps(row, default=str).encode() + b"\n" for row in rows)
        self._identity: dict[str, Any] = {
            "model": {"name": name, **from_main_process(lambda: weights_identity(model, name))},
            "computed_in": "bfloat16" if args.bf16 else "float16" if args.fp16 else "as it is",
            "sampled_by": "vllm" if args.use_vllm else "transformers",
            "sampling": asdict(sampling),
            "rewards": {"names": names, "weights": args.reward_weights},
            "data": {"rows": len(self.dataset), "fingerprint": fingerprint(texts)},
            "completions": settings.completions,
            "seed": settings.seed,
        }

    def _filter(self, settings: DifficultyFilter) -> tuple[list[float], int]:
        """Keep the problems within the bounds; their pass rates, and the tokens of all of them."""
        folder = Path(self.args.output_dir or ".")
        path = file_of(Path(settings.cache_dir or folder.parent / "pass_rates"), self._identity)
        key = "question" if "question" in self.dataset.column_names else "prompt"
        chunk = max(_ROWS_PER_FILE // settings.completions, 1)
        questions = self.dataset[key]
        lines, num_measured = measured(path, self._identity, questions, self._measure, chunk)
        rates = [line["right"] / line["of"] for line in lines]
        low, high = settings.min_pass_rate, settings.max_pass_rate
        self._kept = [row for row, rate in enumerate(rates) if low <= rate <= high]
        below, above = sum(rate < low for rate in rates), sum(rate > high for rate in rates)
        said = (
            f"difficulty filter: {len(self._kept):,} of {len(rates):,} problems have a pass rate "
            f"from {low:g} to {high:g} ({below:,} below, {above:,} above)"
        )
        if len(self._kept) < self._wanted:
            raise BadRowsError(
                f"{said}, but a rollout batch needs {self._wanted} different ones; widen "
                "min_pass_rate and max_pass_rate, or train on other data"
            )
        tokens = sum(line["tokens"] for line in lines)
        if self.accelerator.is_main_process:
            self.say(f"{said}; {num_measured:,} measured now, all in {path}")
            counts = {"problems": len(rates), "kept": len(self._kept), "below": below}
            counts |= {"above": above, "measured_now": num_measured, "tokens": tokens}
            facts = {"in_words": said, **counts, "pass_rates": str(path), **asdict(settings)}
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / FILTER_FILE, json_text(facts))
        return [rates[row] for row in self._kept], tokens

    def _measure(self, problems: range) -> list[tuple[int, int]]:
        """Right completions, and tokens, of each of these rows."""
        copies, seed = self._identity["completions"], self._identity["seed"]
        numbers = range(problems.start * copies, problems.stop * copies)
        seeds = row_seeds(seed, "passrate", 0, numbers)
        groups, _ = self._groups(problems, copies, seeds, "Pass rates")
        return [
            (sum(is_correct(row.rewards) for row in group), sum(row.num_tokens for row in group))
            for group in groups
        ]
