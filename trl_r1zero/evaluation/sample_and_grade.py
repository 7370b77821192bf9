"""Sample, grade and write: one evaluation, on any engine.

All that is missing goes to the engine in one stream. A completion is graded and written as soon as
it is there, while the engine goes on with the others.
"""

import hashlib
import json
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm import tqdm

from trl_r1zero.data.tokenization import encode_prompts
from trl_r1zero.generation import Completion, Engine, SamplingConfig, row_seeds
from trl_r1zero.grading import Grade, Grader
from trl_r1zero.rewards import reward_identity

from .files import ResultsFolder, Stopwatch
from .metrics import GradedCompletion, is_number, mean
from .report import write_evaluation_report
from .summary import summarize_evaluation

# Columns of an example that go into its rows besides prompt and ground truth.
_GIVEN = ("question", "metadata")
# Columns of a row that are not the grader's to fill.
_TAKEN = {one.name for one in fields(GradedCompletion)}
_TAKEN |= {*_GIVEN, "finish_reason", "mean_log_prob"}


@dataclass
class Evaluation:
    """The graded completions, those of the first example first, and `summarize_evaluation`'s."""

    rows: list[GradedCompletion]
    summary: dict[str, Any]


def graded_completion(
    example: Mapping[str, Any],
    completion: Completion,
    parts: Mapping[str, float],
    extra: Mapping[str, Any],
    *,
    numbers: tuple[int, int] | None = None,
) -> GradedCompletion:
    """The row of a completion of an example with `prompt` and `ground_truth`.

    Args:
        parts: Its reward's, empty if it is not graded; see `GradedCompletion.rewards`.
        extra: Further columns, such as the `rule`.
        numbers: Of the example, and of the completion among those of its example; None where each
            example has one completion.
    """
    log_probs = completion.log_probs
    number, index = numbers or (None, 0)
    return GradedCompletion(
        prompt=example["prompt"],
        response=completion.text,
        ground_truth=example["ground_truth"],
        rewards=dict(parts),
        length=len(completion.token_ids),
        truncated=completion.truncated,
        entropy=_finite(completion.mean_entropy),
        extra={
            "finish_reason": completion.finish_reason,
            "mean_log_prob": _finite(mean(log_probs)) if log_probs else None,
            **extra,
        },
        example=number,
        completion=index,
    )


def evaluate(
    engine: Engine,
    examples: Iterable[Mapping[str, Any]],
    grader: Grader,
    sampling: SamplingConfig,
    *,
    num_completions: int = 1,
    seed: int = 0,
    folder: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Sample completions of all examples, grade them, and say what they amount to.

    With a folder the rows are in `results.jsonl` as soon as they are graded. The same call after a
    kill generates what is missing; completion k of example i has the same seed in any case. At the
    end there are also `summary.json`, `report.md` and `report.html`. docs/evaluation.md describes
    them. A progress bar is shown unless the environment has TQDM_DISABLE=1.

    Args:
        engine: What samples.
        examples: A `datasets.Dataset` (see `build_dataset`) or dicts, each with `prompt` and
            `ground_truth`, and where known `question` and `metadata` (a dict); other columns count
            as metadata.
        grader: The `reward_identity` of its function must be the same when the evaluation goes on.
        sampling: How to sample.
        num_completions: Completions of each example.
        seed: Seed of the sampling.
        folder: Where to write; nothing is written if None.
        settings: What else identifies and describes the evaluation (model, task, prompt, versions),
            as JSON can hold it. It must be the same when the evaluation goes on. `skipped_rows`
            among it (see `BadRows.facts`) is in the summary too.

    Raises:
        ValueError: There are no examples, or one lacks a column or has an empty prompt; the folder
            holds another evaluation, or another process writes into it; the reward function
            returned something else than it should.
        RuntimeError: The engine left rows out or gave one twice.
    """
    if num_completions < 1:
        raise ValueError(f"num_completions must be at least 1, got {num_completions}")
    job = _Job(engine, _checked(examples), grader, sampling, num_completions, seed)
    if folder is None:
        clock = Stopwatch()
        rows = job.all_rows((), clock, lambda row: None)
        return Evaluation(rows, summarize_evaluation(rows, num_completions, clock.seconds))
    with job.results(folder, settings) as results:
        rows = job.all_rows(results.rows.values(), results.clock, results.add)
        summary = summarize_evaluation(rows, num_completions, results.clock.seconds)
        if settings and "skipped_rows" in settings:
            summary["skipped_rows"] = settings["skipped_rows"]
        results.finish((row.as_row() for row in rows), summary)
        write_evaluation_report(results.folder, rows, summary, results.facts)
    return Evaluation(rows, summary)


def check_results_folder(
    *, folder: Path, settings: Mapping[str, Any], examples: Dataset, **of_job: Any
) -> None:
    """Raise the ValueError that `evaluate` of these arguments would, if the folder holds another
    evaluation."""
    _Job(examples=_checked(examples), **of_job).results(folder, settings)


@dataclass(frozen=True)
class _Job:
    """What is sampled and graded: row `example * num_completions + completion` of `num_rows`."""

    engine: Engine
    examples: list[dict[str, Any]]
    grader: Grader
    sampling: SamplingConfig
    num_completions: int
    seed: int

    @property
    def num_rows(self) -> int:
        return len(self.examples) * self.num_completions

    def results(self, folder: str | Path, settings: Mapping[str, Any] | None) -> ResultsFolder:
        return ResultsFolder(folder, self.identity(settings or {}), self.num_rows)

    def identity(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        digest = hashlib.sha256()
        for example in self.examples:
            graded_by = [example["prompt"], example["ground_truth"]]
            digest.update(json.dumps(graded_by, ensure_ascii=False).encode() + b"\n")
        return {
            "num_examples": len(self.examples),
            "examples_sha256": digest.hexdigest(),
            "num_completions": self.num_completions,
            "seed": self.seed,
            "sampling": asdict(self.sampling),
            "engine": self.engine.name,
            "reward": reward_identity(self.grader.reward_fn),
            "settings": dict(settings),
        }

    def all_rows(
        self,
        there: Iterable[Mapping[str, Any]],
        clock: Stopwatch,
        write: Callable[[dict[str, Any]], None],
    ) -> list[GradedCompletion]:
        """The rows that are there, and those that are missing, sampled, graded and written."""
        n = self.num_completions
        done = {r["example"] * n + r["completion"]: GradedCompletion.from_row(r) for r in there}
        missing = [number for number in range(self.num_rows) if number not in done]
        if not missing:
            return [done[number] for number in range(self.num_rows)]
        prompt_ids = self._prompt_ids([number // n for number in missing])
        right = sum(row.graded and row.correct for row in done.values())
        bar = tqdm(total=self.num_rows, initial=len(done), desc="Evaluation", unit="completion")
        with bar, clock, closing(self._graded(missing, prompt_ids)) as rows:
            for number, row in rows:
                done[number] = row
                write(row.as_row())
                if row.graded:
                    right += row.correct
                    bar.set_postfix_str(f"accuracy {right / len(done):.3f}", refresh=False)
                bar.update()
        return [done[number] for number in range(self.num_rows)]

    def _prompt_ids(self, wanted: Sequence[int]) -> list[list[int]]:
        """Token ids of the prompts of the wanted examples, each of which is tokenised once."""
        prompts = {number: self.examples[number]["prompt"] for number in wanted}
        encoded = encode_prompts(list(prompts.values()), self.engine.tokenizer)
        ids: dict[int, list[int]] = dict(zip(prompts, encoded, strict=True))
        for number, prompt in prompts.items():
            if not ids[number]:
                raise ValueError(
                    f"example {number}: the prompt {prompt!r} has no tokens; a causal model needs "
                    "at least one to go on from"
                )
        return [ids[number] for number in wanted]

    def _graded(
        self, missing: Sequence[int], prompt_ids: Sequence[Sequence[int]]
    ) -> Generator[tuple[int, GradedCompletion]]:
        """The missing rows by number, each as soon as the engine gives it."""
        name, left = self.engine.name, set(missing)
        seeds = row_seeds(self.seed, "eval", 0, missing)
        stream = self.engine.stream(prompt_ids, self.sampling, seeds)
        try:
            for position, completion in stream:
                if missing[position] not in left:
                    raise RuntimeError(f"engine {name!r} gave row {position} twice")
                left.remove(missing[position])
                numbers = divmod(missing[position], self.num_completions)
                example = self.examples[numbers[0]]
                (grade,) = self.grader.grade([(completion.text, example["ground_truth"])])
                extra = {key: example[key] for key in _GIVEN if key in example} | _columns(grade)
                row = graded_completion(example, completion, grade.parts, extra, numbers=numbers)
                yield missing[position], row
        finally:
            if isinstance(stream, Generator):
                stream.close()  # the engine stops what is still under way
        if left:
            raise RuntimeError(f"engine {name!r} left out {len(left)} of {len(missing)} rows")


def _checked(examples: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(examples, Dataset):
        examples = examples.to_list()  # ten times as fast as going through it row by row
    checked = [_example(number, example) for number, example in enumerate(examples)]
    if not checked:
        raise ValueError("there is nothing to evaluate: examples is empty")
    return checked


def _example(number: int, example: Mapping[str, Any]) -> dict[str, Any]:
    """`prompt`, `ground_truth`, and where known `question` and `metadata`."""
    if absent := [name for name in ("prompt", "ground_truth") if example.get(name) is None]:
        raise ValueError(
            f"example {number} lacks {absent}, it has {sorted(example)}; build the examples with "
            "trl_r1zero.data.rows.build_dataset"
        )
    for name, kind in (("prompt", str), ("metadata", dict)):
        if not isinstance(example.get(name), kind | None):
            raise ValueError(
                f"example {number}: {name} must be a {kind.__name__}, got "
                f"{type(example[name]).__name__}: {example[name]!r:.80}"
            )
    own = {name: example.get(name) for name in ("prompt", "ground_truth", *_GIVEN)}
    others = {name: value for name, value in example.items() if name not in own}
    metadata = {**(own["metadata"] or {}), **others}
    own["metadata"] = {name: value for name, value in metadata.items() if value is not None} or None
    checked = {name: value for name, value in own.items() if value is not None}
    try:
        json.dumps(checked, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"example {number} cannot be written as JSON ({error}); convert the value, or leave "
            "its column out"
        ) from error
    return checked


def _columns(grade: Grade) -> dict[str, Any]:
    """The columns of a row that are the grader's to fill. A ValueError if one of them, or a part of
    the reward, is filled otherwise, or is a number."""
    rule = {} if grade.rule is None else {"rule": grade.rule}
    columns = {**rule, "answer": grade.answer, **grade.columns}
    taken = sorted((_TAKEN & grade.parts.keys()) | ((_TAKEN | grade.parts.keys()) & columns.keys()))
    if taken:
        raise ValueError(f"a grader must not fill the columns {taken}; rename them")
    if numbers := sorted(name for name, value in columns.items() if is_number(value)):
        raise ValueError(
            f"the columns {numbers} of a grade are numbers; return them among the reward's parts"
        )
    return columns


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
