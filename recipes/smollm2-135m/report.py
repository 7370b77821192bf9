"""What came of `make smollm2`: the stages side by side, curves, and answers.

    python recipes/smollm2-135m/report.py --seeds runs/smollm2-135m/seed_0 [runs/...] \
        --output_dir runs/smollm2-135m/report

Of one seed or several. Writes report.md, report.html, curves.png and results.json, and prints the
report. A seed has a folder of each evaluation (`eval/STAGE`) and of each run that trained.
"""

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from trl_r1zero.commands.errors import exit_on
from trl_r1zero.evaluation import mean, standard_error
from trl_r1zero.evaluation.compare import PairedDifference, paired_difference
from trl_r1zero.evaluation.evaluated import EvaluatedFolder
from trl_r1zero.evaluation.numbers import LENGTH, SHARE, plus_minus
from trl_r1zero.evaluation.pages import (
    Example,
    Page,
    Picture,
    Section,
    Table,
    as_html,
    as_markdown,
)
from trl_r1zero.recipe import parse_recipe
from trl_r1zero.reports.plots import draw_band, new_figure, save_figure, style_axes
from trl_r1zero.runs.logged_run import LoggedRun
from trl_r1zero.runs.metrics import BLUE, ORANGE

STAGES = {
    "zero_shot": "zero-shot",
    "sft": "SFT",
    "expert_iteration": "SFT, then expert iteration",
    "grpo": "SFT, then GRPO",
}
# Stages that sample to learn: colour, and the settings whose product is the completions of a step.
SAMPLED = {
    "grpo": (BLUE, ("rollout_batch_size",)),
    "expert_iteration": (ORANGE, ("ei_batch_size", "group_size")),
}
NUM_EXAMPLES = 4


@dataclass
class ReportArguments:
    """Which runs, and where the report goes."""

    seeds: list[str] = field(metadata={"help": "Folders of one seed each."})
    output_dir: str = field(metadata={"help": "Folder of the report."})


@dataclass
class Seed:
    """What one seed gave."""

    folder: Path

    @cached_property
    def evaluations(self) -> dict[str, EvaluatedFolder]:
        return {stage: EvaluatedFolder.read(self.folder / "eval" / stage) for stage in STAGES}

    @cached_property
    def summaries(self) -> dict[str, dict[str, Any]]:
        paths = {stage: self.folder / "eval" / stage / "summary.json" for stage in STAGES}
        return {stage: json.loads(path.read_text("utf-8")) for stage, path in paths.items()}

    def minutes(self, stage: str) -> float:
        """Of training and evaluation, without the starts of programs."""
        is_run = (self.folder / stage / "metrics.jsonl").is_file()
        training = LoggedRun(self.folder / stage).wall_time if is_run else 0.0
        return float(training + self.summaries[stage]["seconds"]) / 60

    def rise(self, metric: str, stage: str) -> PairedDifference:
        """Of a metric from SFT to a stage, question by question."""
        values, baseline = (
            {e.question_keys[row["example"]]: float(row[metric]) for row in e.rows}
            for e in (self.evaluations[stage], self.evaluations["sft"])
        )
        return paired_difference(values, baseline)


def main(args: ReportArguments) -> None:
    seeds = [Seed(Path(folder)) for folder in args.seeds]
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    draw_curves(seeds, folder / "curves.png")
    page = Page(
        "SmolLM2-135M-Instruct: zero-shot, SFT, expert iteration, GRPO",
        sections=[
            Section(
                "Stages",
                [
                    "Held-out questions, one answer each at temperature 1; "
                    + (
                        "± standard error over the questions."
                        if len(seeds) == 1
                        else f"means over {len(seeds)} seeds ± standard error over the seeds."
                    )
                    + " Minutes of training and evaluation."
                ],
                [stage_table(seeds)],
            ),
            Section(
                "From SFT on",
                ["Differences on the same questions ± their standard error over the questions."],
                [rise_table(seeds)],
            ),
            Section(
                "Curves",
                pictures=[
                    Picture(
                        folder / "curves.png",
                        "Validation accuracy in training, ± standard error over the questions, "
                        "against the completions that were sampled to learn from.",
                    )
                ],
            ),
            Section("Answers", [f"Of {seeds[0].folder.name}."], examples=answers(seeds[0])),
        ],
    )
    text = as_markdown(page)
    (folder / "report.md").write_text(text, encoding="utf-8")
    (folder / "report.html").write_text(as_html(page), encoding="utf-8")
    results = {str(seed.folder.name): seed.summaries for seed in seeds}
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(text)
    print(f"Written to {folder}: report.md, report.html, curves.png, results.json")


def stage_table(seeds: list[Seed]) -> Table:
    """A row for each stage."""

    def cell(stage: str, metric: str) -> str:
        values = [seed.summaries[stage][metric] for seed in seeds]
        error = seeds[0].summaries[stage].get(f"{metric}_stderr")
        write = LENGTH if metric == "length" else SHARE
        return plus_minus(mean(values), standard_error(values) if values[1:] else error, write)

    metrics = ("accuracy", "format_reward", "length", "truncated")
    rows = [
        [
            name,
            *(cell(stage, metric) for metric in metrics),
            LENGTH(mean([seed.minutes(stage) for seed in seeds])),
        ]
        for stage, name in STAGES.items()
    ]
    return Table(["stage", "accuracy", "format", "tokens", "truncated", "minutes"], rows)


def rise_table(seeds: list[Seed]) -> Table:
    """A row for each method and seed."""
    rows = []
    for stage in ("expert_iteration", "grpo"):
        for seed in seeds:
            accuracy, reward = seed.rise("answer_reward", stage), seed.rise("reward", stage)
            before, after = (seed.summaries[name]["accuracy"] for name in ("sft", stage))
            cells = [f"{SHARE(before)} to {SHARE(after)}"]
            for rise in (accuracy, reward):
                cells.append(plus_minus(rise.difference, rise.stderr))
            is_known = accuracy.stderr > 0  # not where no question changed
            cells.append(LENGTH(accuracy.difference / accuracy.stderr) if is_known else "-")
            rows.append([f"{STAGES[stage]}, {seed.folder.name}", *cells])
    header = ["method", "accuracy", "rise of accuracy", "rise of reward", "in standard errors"]
    return Table(header, rows)


def draw_curves(seeds: list[Seed], path: Path) -> None:
    """Validation accuracy of the runs that sample."""
    figure = new_figure(7.0, 4.2, "")
    axes = figure.add_subplot()
    for name, (colour, settings) in SAMPLED.items():
        for number, seed in enumerate(seeds):
            run = LoggedRun(seed.folder / name)
            config = run.facts("config.json")
            per_step = math.prod(config[setting] for setting in settings)
            steps, accuracy = run.points("eval_accuracy", run.kind.step_key)
            errors = run.points("eval_accuracy_stderr", run.kind.step_key)[1]
            sampled = [step * per_step for step in steps]
            axes.plot(
                sampled,
                accuracy,
                color=colour,
                marker="o",
                markersize=3.5,
                label=None if number else STAGES[name],
            )
            draw_band(axes, sampled, accuracy, errors, colour)
    axes.set_ylim(bottom=0)
    style_axes(axes, "Validation accuracy", "completions sampled", "accuracy", whole_x=True)
    axes.legend(fontsize=9, frameon=False, loc="upper left")
    save_figure(figure, path, 120)


def answers(seed: Seed) -> list[Example]:
    """What each stage answers to the first questions."""
    examples = []
    for number in range(NUM_EXAMPLES):
        rows = {stage: seed.evaluations[stage].rows[number] for stage in STAGES}
        truth = rows["sft"]["ground_truth"]
        facts = [
            f"{STAGES[stage]}: {'right' if row['answer_reward'] else 'wrong'}"
            for stage, row in rows.items()
        ]
        texts = {STAGES[stage]: row["response"] for stage, row in rows.items()}
        question = rows["sft"]["question"]
        examples.append(Example(f"{question} (answer: {truth})", facts, texts))
    return examples


if __name__ == "__main__":
    with exit_on("report.py", ValueError, OSError):
        main(*parse_recipe((ReportArguments,), description=__doc__).instances)
