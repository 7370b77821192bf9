"""All checks of a run, in the order in which one needs what the other found; and those of the
reward and of single settings."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil

from trl_r1zero.common.numbers import as_rewards

from . import data, machine, memory
from .data import Split
from .findings import Finding, ok, problem, problem_of, warning
from .model import Model, load_model
from .run import Run


def examine(run: Run, listed: str | None) -> Iterator[Finding]:
    """All findings of a run; `listed` is CUDA_VISIBLE_DEVICES as the user set it."""
    model, findings = load_model(run.model_args)
    yield from findings
    yield machine.check_machine(run)
    yield from machine.check_processes(run)
    yield from machine.check_gpu_ids(run, listed)
    yield from machine.check_trainers(run)
    yield from machine.check_network(run)
    prompt, found = data.load_prompt(run, None if model is None else model.tokenizer)
    yield from found
    splits = data.load_data(run, prompt)
    for split in splits:
        yield from data.check_rows(split, run.values["on_bad_row"])
    for split in splits:
        yield from data.check_duplicates(split)
    yield from data.check_white_space(run, splits, prompt)
    for validation in splits[1:]:
        yield from data.check_overlap(splits[0], validation)
    if model is None or model.tokenizer is None:
        yield warning("data/lengths", "lengths in tokens are not known without the tokenizer")
    else:
        splits = [data.with_lengths(split, model.tokenizer) for split in splits]
        yield from data.check_context(run, splits, model.context)
    yield from _reward(run, splits)
    yield from _memory(run, model, splits)
    if model is not None:
        # PEFT's adapters are float32.
        dtype = model.dtype if model.trainable_parameters is None else "float32"
        yield check_learning_rate(run.values["learning_rate"], dtype, run.launch.sharding)
        beta2, kind = run.values["adam_beta2"], run.launch.distributed_type
        yield from check_beta2(run.optimizer, beta2, dtype, kind)
    yield from check_entropies(run)
    yield ok(
        "time/step",
        "seconds per step: not yet measured on a GPU; the first steps of a run say it "
        "(profile: true)",
    )


def _reward(run: Run, splits: Sequence[Split]) -> Iterator[Finding]:
    if not hasattr(run.data, "load_reward"):
        return
    task, prompt = run.data.load_task()
    try:
        reward_fn, _ = run.data.load_reward(task, prompt)
    except ValueError as error:
        yield ok("reward/gold", f"not asked: {error}")
    else:
        graded = next((split for split in splits if split.truths), splits[0])
        yield from check_reward(reward_fn, graded, prompt.answer_format)


def _memory(run: Run, model: Model | None, splits: Sequence[Split]) -> Iterator[Finding]:
    row, setup = data.longest_row(run, splits[0]), None
    shape = None if model is None else model.shape
    if model is None or shape is None or row is None:
        yield warning(
            "memory/memory",
            "memory is not known without the model's config, its tokenizer and the data",
            do="see Model and Data above",
        )
    else:
        try:
            setup = memory.make_setup(run, model, row)
        except ValueError as error:
            yield warning("memory/memory", f"memory is not known: {error}")
            return
    placed = None
    if run.own_server:
        kept = memory.kept_while_sampling(run, shape, setup) if shape and setup else None
        try:
            placed = machine.place_server(run, kept)
        except ValueError as error:
            yield problem_of("server/placement", error)
        else:
            yield from machine.check_placement(run, placed)
    if model is None or shape is None or setup is None:
        return
    host = None if run.machine.assumed else psutil.virtual_memory().total
    yield memory.check_trainer(run, shape, setup, placed, host)
    text = max(max(split.prompt_tokens, default=0) for split in splits) + run.new_tokens
    if placed is not None:
        yield from memory.check_server(run, shape, model.dtype, placed, text)
    yield from memory.check_rollouts(run, shape, setup, text)
    yield memory.check_disk(run, shape, setup, memory.free_bytes(run.values.get("output_dir")))


# The reward on real rows

MOST_ROWS = 300
MOST_SECONDS = 15.0
_LEAST_SHARE = 0.95
_SLOW_SECONDS = 60.0
_LISTED = 3
# A response that gives an answer in the prompt's format; for free text there is none.
_RESPONSES = {
    "tags": " So it is so. </think> <answer> {} </answer>",
    "boxed": "So it is \\boxed{{{}}}.",
}


def check_reward(
    reward_fn: Callable[[str, Any], dict[str, float]], split: Split, answer_format: str
) -> Iterator[Finding]:
    """Grade answers against themselves, evenly over the rows: are they accepted, fast enough?"""
    answers = [
        (line, answer, truth)
        for line, truth in zip(split.lines, split.truths, strict=False)
        if (answer := _answer(truth)) is not None
    ][:: max(1, len(split.truths) // MOST_ROWS)]
    if not answers or answer_format not in _RESPONSES:
        yield ok("reward/gold", "not asked: the rows do not spell out an answer")
        return
    rejected, graded, start = [], 0, time.perf_counter()
    for line, answer, truth in answers:
        try:
            response = _RESPONSES[answer_format].format(answer)
            (reward,) = as_rewards("the reward", [reward_fn(response, truth)["reward"]], [response])
        except Exception as error:  # a user's own function
            found = f"the reward raised, row {line}: {type(error).__name__}: {error}"
            advice = "correct the function, or the row"
            yield problem("reward/gold", found, "a number for every response", advice)
            return
        graded += 1
        if reward < 1:
            rejected.append(f"row {line}: {truth!r:.60}")
        if time.perf_counter() - start > MOST_SECONDS:
            break
    per_1000 = 1000 * (time.perf_counter() - start) / graded
    accepted = graded - len(rejected)
    share = accepted / graded
    facts = f"{accepted:,} of {graded:,} answers are accepted when the model says just them"
    if share >= _LEAST_SHARE:
        yield ok("reward/gold", f"{facts} ({share:.1%})")
    else:
        level = warning if accepted else problem
        facts += f" ({share:.0%}): {'; '.join(rejected[:_LISTED])}"
        advice = "look at these rows, at prompt and at reward: they do not fit one another"
        yield level("reward/gold", facts, "a reward that accepts the right answer", advice)
    speed = f"{per_1000:.2g} s for 1,000 short responses, on this machine"
    yield (warning if per_1000 > _SLOW_SECONDS else ok)("reward/seconds", speed)


def _answer(truth: Any) -> str | None:
    """The answer that a ground truth spells out; None for those that only say how to check one."""
    if isinstance(truth, list):
        truth = truth[0] if truth else None
    return truth if isinstance(truth, str) else None


# Settings that run but do not do what they say

# Explicit bits of a number's significand.
_FRACTION_BITS = {"bfloat16": 7, "float16": 10, "float32": 23}
# The size of most weights of a language model: what they are initialised with.
TYPICAL_WEIGHT = 0.02


def spacing(dtype: str, value: float) -> float:
    """How far apart two neighbouring numbers of a dtype are, at a value."""
    return float(2.0 ** (math.floor(math.log2(value)) - _FRACTION_BITS[dtype]))


def check_learning_rate(learning_rate: float, dtype: str, sharding: str) -> Finding:
    """Whether an update of Adam, about the learning rate, survives the rounding of a weight."""
    # ZeRO and FSDP keep the weights that the optimizer updates in float32.
    where, rate = "settings/learning_rate", f"learning rate {learning_rate:g}"
    if sharding != "none" or dtype not in ("bfloat16", "float16"):
        return ok(where, f"{rate}, float32 updates")
    gap = spacing(dtype, TYPICAL_WEIGHT)
    facts = (
        f"{rate} with {dtype} weights: Adam moves a weight by about that much; at "
        f"{TYPICAL_WEIGHT}, the size of most weights, neighbours are {gap:.1e} apart, so a change "
        f"below {gap / 2:.1e} rounds to nothing"
    )
    if learning_rate >= gap / 2:
        return ok(where, facts)
    moving = learning_rate * 2 ** (_FRACTION_BITS[dtype] + 1)
    return warning(
        where,
        f"{facts}. Weights above {moving:.1e} hardly learn",
        do="set dtype: float32 where memory allows (bfloat16 arithmetic stays), train adapters "
        "(use_peft: true), or expect to need a higher rate",
    )


def check_beta2(optimizer: str, beta2: float, dtype: str, distributed_type: str) -> list[Finding]:
    """Whether Adam's average of squared gradients can decay in the dtype that it is kept in."""
    import torch

    from trl_r1zero.trainers.optimizer_state import check_second_moment

    weight = torch.nn.Parameter(torch.empty(0, dtype=getattr(torch, dtype)))
    try:
        check_second_moment(optimizer, beta2, [weight], distributed_type)
    except ValueError as error:
        return [problem_of("settings/adam_beta2", error)]
    return []


def check_entropies(run: Run) -> list[Finding]:
    """What validation costs besides sampling."""
    if not (run.samples_with_vllm and run.values.get("completion_entropies")):
        return []
    found = (
        "the policy also runs over validation's completions, for their entropies; "
        "completion_entropies: false saves that time"
    )
    return [ok("settings/completion_entropies", found)]
