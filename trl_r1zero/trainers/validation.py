"""Validation by sampled answers inside of training: one pass, error bars."""

from collections.abc import Sequence

from datasets import Dataset
from transformers import Trainer

from trl_r1zero.evaluation import summarize, write_generations
from trl_r1zero.generation import SamplingConfig, row_seeds

from .sampling import SamplingMixin
from .timing import StepTimer


class ValidationMixin(SamplingMixin):
    """`evaluate` as people run it.

    Attributes:
        eval_sampling: How validation samples.
    """

    eval_dataset: Dataset | None
    eval_sampling: SamplingConfig

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
        examples = dataset.select(
            range(min(len(dataset), self.args.num_eval_examples or len(dataset)))
        )
        timer = StepTimer(self.accelerator.device)
        with timer.part("evaluation"):
            graded = self._sample_and_grade(
                examples.to_list(),
                self.eval_sampling,
                row_seeds(self.args.eval_seed, "eval", 0, range(len(examples))),
                description="Validation",
            )
        seconds = timer.collect()["evaluation"]
        results = summarize(graded.rows) | graded.metrics | {"seconds": seconds}
        if self.accelerator.is_main_process:
            write_generations(
                graded.rows,
                self.run_folder / "evaluations" / f"{self.step_key}_{self.steps_done:05d}",
                title=f"Validation after {self.steps_done} {self.step_name}s",
            )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in results.items()}
        # Not TRL's `log`, which adds whatever training has collected since its last line.
        Trainer.log(self, {**metrics, self.step_key: self.steps_done})
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


def require_columns(
    name: str, dataset: Dataset | None, columns: Sequence[str] = ("prompt", "ground_truth")
) -> None:
    """Raise a ValueError if a data set that is there lacks a column."""
    if dataset is None:
        return
    missing = set(columns) - set(dataset.column_names)
    if missing:
        raise ValueError(
            f"{name} lacks the columns {sorted(missing)}, it has {dataset.column_names}; "
            "build it with trl_r1zero.data.rows.build_dataset"
        )
