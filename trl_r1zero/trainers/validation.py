"""Validation inside of training: one pass, error bars, the best model kept."""

import json
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset

from trl_r1zero.evaluation import graded_completion, summarize, write_generations
from trl_r1zero.generation import SamplingConfig, row_seeds

from .sampling import SamplingMixin
from .timing import StepTimer

BEST_MODEL_FOLDER = "best"


class ValidationMixin(SamplingMixin):
    """`evaluate` as people run it, and the best model by accuracy."""

    eval_dataset: Dataset | None
    eval_sampling: SamplingConfig

    @property
    def run_folder(self) -> Path:
        return Path(self.args.output_dir or ".")

    @property
    def grpo_step(self) -> int:
        """GRPO steps that are complete, or the one at work during it."""
        return self.state.global_step // self.args.updates_per_grpo_step

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """One completion for each of the first `num_eval_examples` problems, graded.

        All problems are sampled in one pass over all processes, each from its own random stream
        that is the same at every validation, so two validations differ by the policy alone. The
        table of generations is written to `<output_dir>/evaluations`.

        Returns:
            The metrics of `summarize`, and `seconds`, each with the prefix.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        require_columns("eval_dataset", dataset)
        if dataset is None or len(dataset) == 0:
            raise ValueError("there is nothing to validate on: eval_dataset is missing or empty")
        total = min(len(dataset), self.args.num_eval_examples or len(dataset))
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        # Every process takes equally many rows (the collectives of grading want that); the surplus
        # wraps around to the first rows and is dropped again below.
        share = -(-total // world)
        numbers = range(rank * share, (rank + 1) * share)
        examples = [dataset[number % total] for number in numbers]

        timer = StepTimer(self.accelerator.device)
        with timer.part("evaluation"):
            _, completions = self._sample_completions(
                [example["prompt"] for example in examples],
                self.eval_sampling,
                row_seeds(self.args.eval_seed, "eval", 0, [number % total for number in numbers]),
                batch_size=self.args.per_device_eval_batch_size,
                description="Validation",
            )
            grades = self._grade(examples, completions)
        local_rewards = grades.rewards[rank * share : (rank + 1) * share].tolist()
        local = [
            graded_completion(example, completion, {"reward": reward, **part}, extra)
            for example, completion, reward, part, extra in zip(
                examples, completions, local_rewards, grades.parts, grades.extras, strict=True
            )
        ]
        graded = gather_object(local)[:total]
        seconds = timer.collect()["evaluation"]
        results = summarize(graded) | grades.metrics | {"seconds": seconds}
        if self.accelerator.is_main_process:
            write_generations(
                graded,
                self.run_folder / "evaluations" / f"grpo_step_{self.grpo_step:05d}",
                title=f"Validation after {self.grpo_step} GRPO steps",
            )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in results.items()}
        self.log({**metrics, "grpo_step": self.grpo_step})
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best = super()._determine_best_metric(metrics, trial)
        # The best model is kept apart from the checkpoints: to the rotation none of them is the
        # best one, or it would keep an old one instead of the newest.
        self.state.best_global_step = None
        if is_best and self.args.save_best:
            folder = self.run_folder / BEST_MODEL_FOLDER
            self.save_model(str(folder), _internal_call=True)
            if self.accelerator.is_main_process:
                facts = {"grpo_step": self.grpo_step, **metrics}
                (folder / "best.json").write_text(json.dumps(facts, indent=2) + "\n")
        return is_best


def require_columns(name: str, dataset: Dataset | None) -> None:
    if dataset is None:
        return
    missing = {"prompt", "ground_truth"} - set(dataset.column_names)
    if missing:
        raise ValueError(
            f"{name} lacks the columns {sorted(missing)}, it has {dataset.column_names}; "
            "build it with trl_r1zero.data.build_dataset"
        )
