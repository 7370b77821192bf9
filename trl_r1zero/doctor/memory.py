"""Whether training and server fit on the devices, by component and phase, and the disk has room."""

import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from trl_r1zero.devices import memory as memory_model
from trl_r1zero.devices.facts import GB, GIB
from trl_r1zero.devices.memory import ParameterFacts, Sharing
from trl_r1zero.devices.placement import gpus_in_words
from trl_r1zero.devices.training_setup import ModelShape, TrainingSetup, attention_kind
from trl_r1zero.trainers.memory_limits import microbatch_limits

from .findings import Finding, ok, problem, warning
from .machine import Server
from .model import Model
from .run import Run

# vLLM's own, where a recipe says nothing.
_SERVER_SEQUENCES = 256


def make_setup(run: Run, model: Model, longest_row: int) -> TrainingSetup:
    """What decides the memory of a process, but for micro-batches; as `TrainingSetup` raises."""
    fused, packed, bf16 = map(run.values.get, ("fused_lm_head", "pack_rows", "bf16"))
    if run.values.get("entropy_coef"):  # whose gradient the fused head does not give
        fused = False
    if bf16 is None:
        bf16 = run.on_cuda and not run.values.get("fp16")
    attention = attention_kind(run.model_args.attn_implementation)
    if packed is None:
        packed = attention == "flash"
    tuning = run.method == "instruction_tuning"
    return TrainingSetup(
        weights_dtype=model.dtype,
        autocast=bool(bf16) and model.dtype == "float32",
        optimizer=run.optimizer,
        trainable_parameters=model.trainable_parameters,
        gradient_checkpointing=bool(run.values["gradient_checkpointing"]),
        fused_lm_head=not tuning and (run.on_cuda if fused is None else fused),
        transformers_loss=tuning,
        attention=attention,
        packed=packed or bool(run.values.get("share_prefixes")),
        reference_model=has_reference(run, model),
        processes=run.launch.num_processes,
        sharding=run.launch.sharding,
        on_cuda=run.on_cuda,
        longest_row=longest_row,
    )


def has_reference(run: Run, model: Model) -> bool:
    """Whether a second model is kept on the device; with adapters it is the model without them."""
    if model.trainable_parameters is not None:
        return False
    if run.method == "dpo":
        return not (run.values["precompute_ref_log_probs"] or run.values["ref_device"])
    return run.method == "grpo" and bool(run.values.get("beta"))


def kept_while_sampling(run: Run, shape: ModelShape, setup: TrainingSetup) -> int:
    """Weights and optimizer state of a trainer, as the trainer itself counts them."""
    number, size, trained = shape.num_parameters, setup.weight_bytes, setup.trainable_parameters
    parameters = [ParameterFacts(number, size, trained=trained is None)]
    if trained is not None:
        parameters.append(ParameterFacts(trained, 4))
    if setup.reference_model:
        parameters.append(ParameterFacts(number, size, trained=False))
    launch = run.launch
    sharing = Sharing.of(launch.distributed_type, launch.num_processes, launch.zero_stage)
    return memory_model.trainer_bytes(parameters, setup.optimizer, sharing)


def cut_microbatches(
    run: Run, shape: ModelShape, setup: TrainingSetup, device_bytes: int | None
) -> tuple[TrainingSetup, str]:
    """The setup with micro-batches as the run cuts them, and why not even a row fits, or `""`."""
    budget, error = None, ""
    if device_bytes is not None:
        try:
            budget = memory_model.tokens_per_microbatch(shape, setup, device_bytes)
        except ValueError as reason:
            budget, error = setup.longest_row, str(reason)
    longest, steps = setup.longest_row, run.values.get("gradient_accumulation_steps")
    if run.method == "instruction_tuning":
        return replace(setup, tokens=run.values["per_device_train_batch_size"] * longest), error
    share = (run.train_batch[0] or 1) // run.launch.num_processes
    rows = None if steps is None else max(1, share // steps)
    given = run.values.get("max_tokens_per_microbatch")
    limits = microbatch_limits(rows, given, budget, packed=setup.packed)
    sizes = [limits.tokens, limits.rows and limits.rows * longest]
    return replace(setup, tokens=max(longest, min(size for size in sizes if size))), error


def bytes_for_training(run: Run, server: Server | None) -> int | None:
    """What a trainer's process may take of its device while it trains; None on CPUs."""
    number = run.launch.processes_here
    if not run.on_cuda or number > len(run.seen.devices):
        return None
    total = run.seen.total_bytes(tuple(range(number)))
    if server is None or not server.shares_a_gpu:
        return total
    if server.config.sleep_level:
        return total - memory_model.ASLEEP_SERVER_BYTES
    return int(total * (1 - (server.config.gpu_memory_utilization or 0)))


def check_trainer(
    run: Run, shape: ModelShape, setup: TrainingSetup, server: Server | None, host: int | None
) -> Finding:
    """The parts of a trainer's memory, and whether they fit; CPUs share `host` bytes, if known."""
    where, have = "memory/trainer", bytes_for_training(run, server)
    setup, error = cut_microbatches(run, shape, setup, have)
    parts = memory_model.training_memory(shape, setup)
    total = parts.total
    words = ", ".join(f"{name} {_gib(size)}" for name, size in asdict(parts).items())
    facts = (
        f"trainer, {_gib(total)} GiB at its peak: {words} (micro-batches of up to "
        f"{setup.tokens:,} tokens, rows of up to {setup.longest_row:,})"
    )
    if have is None:
        if run.on_cuda or host is None or total * run.launch.processes_here <= host:
            return ok(where, facts)
        facts += f"; this machine has {_gib(host)} GiB"
        needed = f"at most {_gib(host)} GiB for all processes"
        advice = "take a smaller model, fewer tokens (max_tokens_per_microbatch), or a GPU"
        return problem(where, facts, needed, advice)
    facts += f"; {_gib(have)} GiB to train with on its device"
    if total > have:
        advice = error.partition("GiB: ")[2] or (
            "leave max_tokens_per_microbatch and gradient_accumulation_steps unset, so that "
            "micro-batches are as large as fits"
        )
        return problem(where, facts, f"at most {_gib(have)} GiB", advice)
    if total > have * (1 - memory_model.MARGIN):
        advice = "set gradient_checkpointing: true, or max_tokens_per_microbatch lower"
        return warning(where, f"{facts}: less than a tenth is left for fragmentation", do=advice)
    return ok(where, facts)


def check_server(
    run: Run, shape: ModelShape, dtype: str, server: Server, longest_text: int
) -> Iterator[Finding]:
    """Whether a server's share of its devices is enough; `dtype` is that of training."""
    config, numbers = server.config, server.placement.server
    if not numbers:
        return
    total, share = run.seen.total_bytes(numbers), config.gpu_memory_utilization or 0
    if config.dtype != "auto":
        dtype = config.dtype
    elif dtype == "float32":
        dtype = "bfloat16"
    memory = memory_model.server_memory(
        shape,
        dtype,
        config.max_model_len or longest_text,
        config.max_num_seqs or _SERVER_SEQUENCES,
        share_bytes=int(share * total),
        tensor_parallel_size=config.tensor_parallel_size,
    )
    where = "memory/server"
    facts = (
        f"server, {share:.0%} of {gpus_in_words(numbers)} ({_gib(total)} GiB): weights "
        f"{_gib(memory.weights)} ({dtype}), work {_gib(memory.work)}, "
        f"{_gib(max(0, memory.kv_bytes))} for keys and values"
    )
    count = f"{memory.sequences:,} texts of {longest_text:,} tokens at a time"
    if memory.sequences < 1:
        missing = memory.kv_bytes_per_token * longest_text - memory.kv_bytes
        advice = (
            "give the server another device, more of this one (gpu_memory_utilization), or the "
            "trainer less (dtype: bfloat16, use_peft: true)"
        )
        facts += f": not one text of {longest_text:,} tokens fits"
        yield problem(where, facts, f"{_gib(missing)} GiB more", advice)
    elif memory.sequences < 16:
        yield warning(where, f"{facts}: {count}, which is slow", do="give the server more memory")
    else:
        yield ok(where, f"{facts}: {count}")
    if server.placement.shared and config.sleep_level:
        yield ok(
            "memory/phases",
            f"they take turns: while the server samples, it has {share:.0%} of {_gib(total)} GiB, "
            "beside weights and optimizer of the trainer; while the trainer trains, the server "
            f"sleeps and the trainer has {_gib(bytes_for_training(run, server) or 0)} GiB (what a "
            "sleeping server keeps is assumed, not measured)",
        )


def check_rollouts(
    run: Run, shape: ModelShape, setup: TrainingSetup, text: int
) -> Iterator[Finding]:
    """Whether completions that transformers generates fit: keys and values of all at a time."""
    if not run.samples or run.samples_with_vllm or not run.on_cuda:
        return
    rows = run.values.get("per_device_eval_batch_size")
    needed = (rows or 0) * text * shape.kv_values_per_token * setup.weight_bytes
    have = (bytes_for_training(run, None) or 0) - memory_model.training_memory(shape, setup).static
    if rows is None or needed <= have:
        found = (
            "transformers samples, as many completions at a time as fit into memory: slow on a GPU"
        )
        advice = "with vLLM installed: use_vllm: true and vllm_server: {}, on one GPU too"
        yield warning("memory/rollouts", found, do=advice)
    else:
        found = (
            f"transformers keeps keys and values of {rows:,} completions at a time: "
            f"{_gib(needed)} GiB, and {_gib(max(0, have))} are free"
        )
        advice = "leave per_device_eval_batch_size unset, or set use_vllm: true and vllm_server: {}"
        yield problem("memory/rollouts", found, "a smaller batch of generation", advice)


def check_disk(run: Run, shape: ModelShape, setup: TrainingSetup, free: int) -> Finding:
    """Whether a run's folder, at its fullest, has room in so many free bytes."""
    checkpoint, values = memory_model.checkpoint_bytes(shape, setup), run.values
    model, number = memory_model.model_bytes(shape, setup), 0
    if values.get("save_every", "unknown") is not None:
        limit, steps = values.get("save_total_limit"), values.get("n_grpo_steps")
        every = values.get("save_every")
        # The new one is whole before the oldest goes.
        number = limit + 1 if limit is not None else steps // every + 1 if steps and every else 10
    models = 1 + bool(values.get("save_best") and values.get("eval_every") is not None)
    needed = number * checkpoint + models * model
    facts = (
        f"{values.get('output_dir')}: up to {needed / GB:.1f} GB: {number} x {checkpoint / GB:.1f} "
        "GB of checkpoints (the newest and what save_total_limit keeps), "
        f"{models} x {model / GB:.1f} GB of models (best, final); {free / GB:.1f} GB are free"
    )
    if needed <= free:
        return ok("disk/checkpoints", facts)
    advice = "give another output_dir, or set save_every: null or save_best: false"
    return problem("disk/checkpoints", facts, f"{needed / GB:.1f} GB", advice)


def free_bytes(folder: str | None) -> int:
    """What is free where a folder is, or would be made."""
    path = Path(folder or ".").expanduser().absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"
