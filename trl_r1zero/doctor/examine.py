"""All checks of a run, in the order in which one needs what the other found."""

from collections.abc import Iterator, Sequence

import psutil

from . import data, machine, memory, reward, settings
from .data import Split
from .findings import Finding, ok, problem_of, warning
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
        yield settings.check_learning_rate(run.values["learning_rate"], dtype, run.launch.sharding)
        beta2, kind = run.values["adam_beta2"], run.launch.distributed_type
        yield from settings.check_beta2(run.optimizer, beta2, dtype, kind)
    yield from settings.check_entropies(run)
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
        yield from reward.check_reward(reward_fn, graded, prompt.answer_format)


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
