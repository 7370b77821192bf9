"""All checks of a run, in the order in which one needs what the other found."""

from .data import (
    Data,
    check_context,
    check_duplicates,
    check_overlap,
    check_rows,
    load_data,
    longest_row,
    with_lengths,
)
from .findings import Finding, ok, warning
from .launch import check_gpu_ids, check_processes
from .machine import check_machine, check_network, check_trainers, place_server
from .memory import (
    check_rollouts,
    check_server,
    check_trainer,
    kept_while_sampling,
    make_setup,
    memory_of_host,
    trainer_memory,
)
from .model import Model, load_model_facts
from .reward import check_reward, grade_gold
from .run import Run
from .settings import (
    check_beta2,
    check_disk,
    check_entropies,
    check_learning_rate,
    check_time,
    disk_needed,
    free_bytes,
)


def examine(run: Run, listed: str | None) -> list[Finding]:
    """Look at a run.

    Args:
        run: Before its start.
        listed: CUDA_VISIBLE_DEVICES as the user has set it; None if it is unset or not looked at.
    """
    model, findings = load_model_facts(run.recipe.instances[-1])
    findings += _machine(run, listed)
    data, more = _data(run, model)
    findings += more
    findings += _reward(run, data)
    findings += _memory(run, model, longest_row(run, data), _longest_text(run, data))
    findings += _settings(run, model)
    return [*findings, *check_entropies(run), *check_time()]


def _machine(run: Run, listed: str | None) -> list[Finding]:
    rows, name = run.train_batch
    cpu_is_meant = run.launch.use_cpu or bool(run.values.get("use_cpu"))
    return [
        *check_machine(run.machine, cpu_is_meant=cpu_is_meant),
        *check_processes(
            run.launch, rows, name, run.samples and not run.values.get("use_vllm", False)
        ),
        *check_gpu_ids(run.launch, run.machine, listed),
        *check_trainers(run),
        *check_network(run),
    ]


def _data(run: Run, model: Model | None) -> tuple[Data, list[Finding]]:
    data = load_data(run)
    findings = [finding for split in data.splits for finding in check_rows(split)]
    findings += [finding for split in data.splits for finding in check_duplicates(split)]
    findings += check_overlap(data)
    if model is None or model.tokenizer is None:
        findings.append(
            warning("data", "lengths", "lengths in tokens are not known without the tokenizer")
        )
        return data, findings
    data = with_lengths(data, model.tokenizer)
    return data, findings + check_context(run, data, model.context)


def _reward(run: Run, data: Data) -> list[Finding]:
    if not hasattr(run.data, "load_reward"):
        return []
    task, prompt = run.data.load_task()
    try:
        reward_fn, _ = run.data.load_reward(task, prompt)
    except ValueError as error:
        return [ok("reward", "gold", f"not asked: {error}")]
    truths = data.train.truths or (data.eval.truths if data.eval else ())
    return check_reward(grade_gold(reward_fn, truths, prompt.answer_format))


def _longest_text(run: Run, data: Data) -> int:
    prompts = [max(tokens) for tokens in data.prompt_tokens.values() if tokens]
    return max(prompts, default=0) + run.new_tokens


def _memory(run: Run, model: Model | None, row: int | None, text: int) -> list[Finding]:
    if model is None or model.shape is None or row is None:
        findings = [
            warning(
                "memory",
                "memory",
                "memory is not known without the model's config, its tokenizer and the data",
                "",
                "see Model and Data above",
            )
        ]
        return findings + (place_server(run, None)[1] if run.own_server else [])
    try:
        setup = make_setup(run, model, row)
    except ValueError as error:
        return [warning("memory", "memory", f"memory is not known: {error}")]
    findings, server = [], None
    if run.own_server:
        server, findings = place_server(run, kept_while_sampling(run, model, setup))
    memory = trainer_memory(run, model.shape, setup, server)
    findings += check_trainer(run, memory, memory_of_host(run))
    if server is not None:
        findings += check_server(run, model, server, text)
    findings += check_rollouts(run, model, setup, text)
    needed, words = disk_needed(run, model.shape, setup)
    folder = run.values.get("output_dir")
    return findings + check_disk(needed, words, folder, free_bytes(folder))


def _settings(run: Run, model: Model | None) -> list[Finding]:
    if model is None:
        return []
    optimizer = str(getattr(run.values["optim"], "value", run.values["optim"]))
    adapters = model.trainable_parameters is not None
    dtype = "float32" if adapters else model.dtype  # PEFT's are
    return [
        *check_learning_rate(run.values["learning_rate"], dtype, run.launch.sharding),
        *check_beta2(optimizer, run.values["adam_beta2"], dtype, run.launch.distributed_type),
    ]
