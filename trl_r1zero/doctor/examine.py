"""All checks of a run, in the order in which one needs what the other found."""

from collections.abc import Iterator, Sequence

from .data import (
    check_context,
    check_duplicates,
    check_overlap,
    check_rows,
    load_data,
    longest_row,
    with_lengths,
)
from .findings import Finding, ok, problem_of, warning
from .machine import check_gpu_ids, check_machine, check_processes, check_trainers
from .memory import (
    check_rollouts,
    check_server,
    check_trainer,
    kept_while_sampling,
    make_setup,
    memory_of_host,
    trainer_memory,
)
from .model import Model, load_model
from .reward import check_reward
from .rows import Split
from .run import Run
from .server import Server, check_network, check_placement, place_server
from .settings import check_beta2, check_disk, check_entropies, check_learning_rate, free_bytes


def examine(run: Run, listed: str | None) -> Iterator[Finding]:
    """All findings of a run before its start.

    Args:
        run: The run.
        listed: CUDA_VISIBLE_DEVICES as the user has set it; None if it is unset or not looked at.
    """
    model, findings = load_model(run.model_args)
    yield from findings
    yield from check_machine(run)
    yield from check_processes(run)
    yield from check_gpu_ids(run, listed)
    yield from check_trainers(run)
    yield from check_network(run)
    splits = load_data(run)
    for check in (check_rows, check_duplicates):
        for split in splits:
            yield from check(split)
    if len(splits) > 1:
        yield from check_overlap(*splits)
    if model is None or model.tokenizer is None:
        yield warning("data/lengths", "lengths in tokens are not known without the tokenizer")
    else:
        splits = [with_lengths(split, model.tokenizer) for split in splits]
        yield from check_context(run, splits, model.context)
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
    row, setup = longest_row(run, splits[0]), None
    shape = None if model is None else model.shape
    if model is None or shape is None or row is None:
        yield warning(
            "memory/memory",
            "memory is not known without the model's config, its tokenizer and the data",
            do="see Model and Data above",
        )
    else:
        try:
            setup = make_setup(run, model, row)
        except ValueError as error:
            yield warning("memory/memory", f"memory is not known: {error}")
            return
    server: Server | None = None
    if run.own_server:
        kept = kept_while_sampling(run, shape, setup) if shape and setup else None
        try:
            server = place_server(run, kept)
        except ValueError as error:
            yield problem_of("server/placement", error)
        else:
            yield from check_placement(run, server)
    if model is None or shape is None or setup is None:
        return
    memory = trainer_memory(run, shape, setup, server)
    yield check_trainer(run, memory, memory_of_host(run))
    text = max(max(split.prompt_tokens, default=0) for split in splits) + run.new_tokens
    if server is not None:
        yield from check_server(run, shape, model.dtype, server, text)
    yield from check_rollouts(run, shape, setup, text)
    yield check_disk(run, shape, setup, free_bytes(run.values.get("output_dir")))
