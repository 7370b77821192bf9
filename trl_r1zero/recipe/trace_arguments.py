"""What to fine-tune on (reasoning traces) and to validate on, as recipes say it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from trl_r1zero.common.arguments import arg
from trl_r1zero.common.processes import from_main_process
from trl_r1zero.data.prompt_room import PromptRoom
from trl_r1zero.data.prompts import Prompt
from trl_r1zero.data.tasks.base import GeneratedTask, Task
from trl_r1zero.data.trace_doctor import TraceReport, examine_traces
from trl_r1zero.data.traces import (
    Trace,
    count_questions,
    fix_whitespace,
    keep_correct,
    load_traces,
    select_examples,
)
from trl_r1zero.recipe.task_arguments import EVAL_DATA_HELP, TaskArguments

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from trl_r1zero.trainers.rewards import TRLReward


@dataclass
class TraceArguments(TaskArguments):
    """Traces to train on, and a task to validate on. A ValueError for an unknown task, prompt or
    reward; on `load_traces`, for rows that cannot be used, or settings that leave none."""

    train_data: str | None = arg(
        None,
        "JSON-lines file or hub id (id, id:split) of the traces: rows of prompt "
        "(already formatted), response and, for filter_correct, ground_truth; or the task's "
        "problems with worked solutions. Unset: the task's own.",
    )
    eval_data: str | list[str | dict[str, Any]] | None = arg(
        None,
        "The task's validation problems. Unset: those that the task generates; none "
        f"where it reads them. {EVAL_DATA_HELP}",
    )
    num_examples: int | None = arg(
        None,
        "Train on this number of questions, with all their traces: 128, 256, 512, "
        "1024 ... Of two subsets with the same subset_seed, the larger holds the smaller. "
        "Unset: all.",
    )
    subset_seed: int = arg(0, "Which questions num_examples takes. Not the training seed.")
    filter_correct: bool = arg(
        False, "Keep only traces whose response the reward accepts (before num_examples)."
    )
    fix_whitespace: bool = arg(
        False,
        "Write exactly one space between </think> and <answer>, as the reward asks for "
        "(before filter_correct).",
    )

    def load_traces(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int | None,
        *,
        append_eos: bool = False,
        rooms: Mapping[str, PromptRoom] | None = None,
    ) -> "LoadedTraces":
        """Read prompt, reward, traces and validation problems, and examine the traces.

        Nothing is removed for having more than `max_length` tokens, with the end token that the
        trainer adds (`append_eos`, or the prompt's): the report counts it. `rooms` as in
        `load_problems`.
        """
        from trl_r1zero.data.rows import build_trace_dataset
        from trl_r1zero.data.tokenization import decode_output, tokenize_separately

        task, prompt = self.load_task()
        prompt = prompt.for_tokenizer(tokenizer)
        if max_length is not None:
            max_length -= append_eos or any(isinstance(stop, int) for stop in prompt.stop)
        reward = self.load_trl_reward(task, prompt)
        validates = self.eval_data is not None or isinstance(task, GeneratedTask)
        traces, sizes = self._select(task, prompt)
        eval_dataset = self.load_validation(task, prompt, rooms) if validates else None
        sets = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
        # After all workers have started: the tokenizer's threads do not survive a fork.
        prompt_ids, response_ids = tokenize_separately(
            [trace.prompt for trace in traces], [trace.response for trace in traces], tokenizer
        )
        report = examine_traces(
            traces,
            list(zip(map(len, prompt_ids), map(len, response_ids), strict=True)),
            answer_format=prompt.answer_format,
            max_length=max_length,
            eval_prompts=[p for rows in sets if rows is not None for p in rows["prompt"]],
            prompt=prompt,
            read_back=[
                decode_output(*ids, tokenizer) for ids in zip(prompt_ids, response_ids, strict=True)
            ],
        )
        dataset = build_trace_dataset(traces)
        return LoadedTraces(prompt, reward, dataset, eval_dataset, report, sizes)

    def _select(self, task: Task, prompt: Prompt) -> tuple[list[Trace], dict[str, dict[str, int]]]:
        """The traces that are trained on, and how many each step left."""
        with self.reading("train_data", self.train_data) as bad_rows:
            traces = load_traces(
                task, prompt, self.train_data, graded=self.filter_correct, on_bad_row=bad_rows
            )
        skipped = {"skipped": len(bad_rows.errors)} if bad_rows.errors else {}
        sizes = {"read": {**_size(traces), **skipped}}
        if self.fix_whitespace:
            traces, changed = fix_whitespace(traces)
            sizes["fix_whitespace"] = {**_size(traces), "changed": changed}
        if self.filter_correct:
            reward_fn, workers = self.load_reward(task, prompt)
            keep = partial(keep_correct, deadline_seconds=self.reward_deadline_seconds)
            # Where a deadline decides, each process could keep other rows.
            traces = from_main_process(partial(keep, traces, reward_fn, workers=workers))
            sizes["filter_correct"] = _size(traces)
        if self.num_examples is not None:
            traces = select_examples(traces, self.num_examples, self.subset_seed)
            sizes["num_examples"] = _size(traces)
        return traces, sizes


@dataclass
class LoadedTraces:
    """What supervised fine-tuning runs on; prompt and reward are for validation."""

    prompt: Prompt
    reward: "TRLReward"
    # Columns `prompt`, `response`, and `ground_truth` where all traces have one.
    train_dataset: "Dataset"
    # Columns `prompt`, `ground_truth` and more; several sets by name; None if there is none.
    eval_dataset: "Dataset | dict[str, Dataset] | None"
    # What is wrong with the traces that are trained on, and their lengths.
    report: TraceReport
    # `rows` and `questions` after each step that was taken, in their order: `read` (with `skipped`,
    # how many rows could not be used), `fix_whitespace` (with `changed`, its number of rows),
    # `filter_correct`, `num_examples`.
    sizes: dict[str, dict[str, int]]

    def to_text(self) -> str:
        """Sizes and report for a terminal, at most 100 columns wide."""
        lines = ["Selection             rows  questions"]
        for step, size in self.sizes.items():
            notes = [f"  ({size[n]:,} rows {n})" for n in ("skipped", "changed") if n in size]
            lines.append(f"  {step:<14}{size['rows']:>10,}{size['questions']:>11,}{''.join(notes)}")
        return "\n".join([*lines, self.report.to_text()])


def _size(traces: list[Trace]) -> dict[str, int]:
    return {"rows": len(traces), "questions": count_questions(traces)}
