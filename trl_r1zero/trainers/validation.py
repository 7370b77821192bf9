"""Validation by sampled answers inside of training: one pass, error bars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from datasets import Dataset

from trl_r1zero.data.files import describe
from trl_r1zero.evaluation import summarize, write_generations
from trl_r1zero.generation import SamplingConfig, row_seeds

from .rewards import GradeFn
from .sampling import PolicySampler
from .timing import StepTimer


@dataclass
class Validator:
    """Validates the current policy on a fixed set of problems."""

    sampler: PolicySampler  # samples the answers
    sampling: SamplingConfig  # how
    grade: GradeFn  # grades them
    seed: int  # seed of the answers
    num_examples: int | None  # problems at most; None for all
    folder: Path  # gets the tables of generations
    step_key: str  # what counts the steps of the run; `step_name`: what a step is called
    step_name: str

    def run(
        self, dataset: Dataset | None, steps_done: int, subfolder: str = ""
    ) -> dict[str, float]:
        """One completion for each of the first `num_examples` problems, graded; a collective call.

        All problems are sampled in one pass over all processes, each from its own random stream
        that is the same at every validation, so two validations differ by the policy alone.

        Args:
            dataset: With columns `prompt` and `ground_truth`.
            steps_done: Steps of the run so far: in the name of the table of generations.
            subfolder: Of `folder`, for the table: the set's name, where it is one of several.

        Returns:
            The metrics of `summarize`, what the reward functions logged, and `seconds`.
        """
        require_columns("eval_dataset", dataset)
        if dataset is None or len(dataset) == 0:
            raise ValueError("there is nothing to validate on: eval_dataset is missing or empty")
        examples = dataset.select(range(min(len(dataset), self.num_examples or len(dataset))))
        accelerator = self.sampler.policy.accelerator
        timer = StepTimer(accelerator.device)
        with timer.part("evaluation"):
            graded = self.sampler.sample_and_grade(
                examples.to_list(),
                self.sampling,
                row_seeds(self.seed, "eval", 0, range(len(examples))),
                self.grade,
                description="Validation",
            )
        if accelerator.is_main_process:
            on_set = subfolder and f" on {subfolder}"
            write_generations(
                graded.rows,
                self.folder / subfolder / f"{self.step_key}_{steps_done:05d}",
                title=f"Validation{on_set} after {steps_done} {self.step_name}s",
            )
        seconds = timer.collect()["evaluation"]
        return summarize(graded.rows) | graded.metrics | {"seconds": seconds}


# Problems to validate on: one set, or several by name, of which the first is the main one.
EvalDataset: TypeAlias = Dataset | Mapping[str, Dataset] | None


def named_sets(eval_dataset: EvalDataset) -> dict[str, Dataset | None]:
    """The sets by name; that of a single one is "". A ValueError for an empty mapping."""
    if not isinstance(eval_dataset, Mapping):
        return {"": eval_dataset}
    if not eval_dataset:
        raise ValueError("eval_dataset is an empty mapping; give at least one set, or None")
    return dict(eval_dataset)


def require_for_validation(eval_every: int | None, **given: object) -> None:
    """Raise a ValueError if what validation needs is missing."""
    for name, value in given.items():
        if eval_every is not None and value is None:
            raise ValueError(
                f"eval_every is set, but there is no {name}; give one, or set it to None"
            )


def require_texts(name: str, dataset: Dataset, columns: Sequence[str]) -> None:
    """Raise a ValueError if a value in these columns is no text; it names the row."""
    for column in columns:
        for row, value in enumerate(dataset[column]):
            if not isinstance(value, str):
                raise ValueError(
                    f"{name}, row {row}, column {column!r}: got {describe(value)}, expected text; "
                    "correct or remove the row"
                )


def require_columns(
    name: str, dataset: EvalDataset, columns: Sequence[str] = ("prompt", "ground_truth")
) -> None:
    """Raise a ValueError if a data set that is there, or one of several, lacks a column, or a
    prompt or response is no text."""
    for key, one in named_sets(dataset).items():
        missing = set(columns) - set(columns if one is None else one.column_names)
        if one is not None and missing:
            raise ValueError(
                f"{name}{key and f'[{key!r}]'} lacks the columns {sorted(missing)}, it has "
                f"{one.column_names}; build it with trl_r1zero.data.rows.build_dataset"
            )
        if one is not None:
            texts = [column for column in columns if column in ("prompt", "response")]
            require_texts(f"{name}{key and f'[{key!r}]'}", one, texts)
