"""What a sweep says of a plan: before it, what is to do and what that costs; after it, a report."""

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from trl_r1zero.common.run_files import METRICS_FILE
from trl_r1zero.evaluation import mean
from trl_r1zero.evaluation.markdown import table
from trl_r1zero.reports.comparison import write_comparison
from trl_r1zero.runs.index import RunState, run_state
from trl_r1zero.runs.logged_run import LoggedRun

from .plan import Plan, PlannedRun, Slot

# These begin again, or go on.
TO_RUN = ("missing", "stopped", "failed")


def plan_text(plan: Plan, slots: Sequence[Slot]) -> str:
    """A table of a plan's variants and their runs, and what remains to be done costs."""
    states = {run: run_state(run.folder) for run in plan.runs}
    rows = []
    for label, runs in plan.groups.items():
        counts = Counter(states[run].status for run in runs)
        statuses = ", ".join(f"{number} {status}" for status, number in counts.items())
        seeds = ", ".join(str(run.seed) for run in runs)
        minutes, _ = _minutes(plan, runs[0], states)
        rows.append([label, seeds, statuses, "-" if minutes is None else f"{minutes:.1f}"])
    of = plan.experiment
    title = f"# {of.name}, {of.scale_name}: {of.file.question}"
    variants = "\n".join(table(["variant", "seeds", "runs", "minutes each"], rows))
    return f"{title}\n\n{variants}\n\n{_cost(plan, states, len(slots))}\n"


def _cost(plan: Plan, states: dict[PlannedRun, RunState], slots: int) -> str:
    left = [run for run in plan.runs if states[run].status in TO_RUN]
    runs = f"{len(left)} of {len(plan.runs)} runs to do below {plan.folder}"
    if not left:
        return f"{runs}."
    estimates = [_minutes(plan, run, states) for run in left]
    known = [minutes for minutes, _ in estimates if minutes is not None]
    if len(known) < len(left):
        return f"{runs}; what one takes is not known before one has finished."
    hours, gpus = sum(known) / 60, plan.experiment.scale.gpus
    places = f"{slots} at a time" if slots > 1 else "one at a time"
    gpu_hours = f", {hours * gpus:.1f} GPU hours" if gpus else ""
    sources = ", ".join(dict.fromkeys(source for _, source in estimates))
    return f"{runs}, {places}: about {hours / slots:.1f} hours{gpu_hours} (by {sources})."


def _minutes(
    plan: Plan, run: PlannedRun, states: dict[PlannedRun, RunState]
) -> tuple[float | None, str]:
    """What a run takes, and where that is from: finished runs of its variant, or of the plan, or
    the experiment's file."""
    finished = {one: state.seconds for one, state in states.items() if state.status == "finished"}
    alike = [seconds for one, seconds in finished.items() if one.label == run.label]
    if finished:
        return mean(alike or list(finished.values())) / 60, "finished runs"
    return plan.experiment.scale.minutes, plan.experiment.scale.minutes_from


def report_plan(plan: Plan, folder: Path) -> str:
    """Write the report of what there is of a plan's runs; what a terminal is to show."""
    experiment = plan.experiment
    states = {run: run_state(run.folder) for run in plan.runs}
    begun = [run for run in plan.runs if (run.folder / METRICS_FILE).is_file()]
    logged = {run: one for run in begun if (one := LoggedRun(run.folder)).validations}
    groups: dict[str, list[Path]] = {}
    for run in logged:
        groups.setdefault(run.label, []).append(run.folder)
    problems = [
        f"{run.name}: {state.status} ({state.reason})."
        for run, state in states.items()
        if state.reason
    ]
    not_run = Counter(state.status for state in states.values() if state.status in TO_RUN[:2])
    problems += [
        f"{number} of {len(plan.runs)} runs: {status}." for status, number in not_run.items()
    ]
    if not groups:
        return "\n".join([f"{experiment.name}: there is nothing to report.", *problems]) + "\n"
    command = ["trl-r1zero", "sweep", str(experiment.beside(experiment.path.name))]
    command += ["--scale", experiment.scale_name]
    minutes = sum(state.seconds for state in states.values()) / 60
    where = "".join(sorted({_machine(run) for run in logged.values()}))
    setup = [
        f"Made by '{shlex.join(command)}' from the base recipe "
        f"{experiment.beside(experiment.scale.recipe)}.",
        f"{len(plan.runs)} runs, {minutes:.0f} minutes of run time in all{where}.",
    ]
    return write_comparison(
        groups,
        folder,
        title=f"{experiment.name}, {experiment.scale_name}",
        question=experiment.file.question,
        baseline=experiment.baseline if experiment.baseline in groups else None,
        setup=setup,
        problems=problems,
    )


def _machine(run: LoggedRun) -> str:
    """Where a run ran, and with what."""
    facts = run.facts("environment.json")
    versions = facts["packages"]
    return f", on {facts['device']} with torch {versions['torch']} and TRL {versions['trl']}"
