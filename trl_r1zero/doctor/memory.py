"""Whether weights, activations and the server fit on the devices, by component and phase."""

from dataclasses import dataclass, replace

import psutil

from trl_r1zero.devices.memory import (
    ASLEEP_SERVER_BYTES,
    GIB,
    MARGIN,
    MemoryParts,
    ModelShape,
    TrainingSetup,
    tokens_per_microbatch,
    training_memory,
)
from trl_r1zero.devices.sampling_memory import (
    ParameterFacts,
    ServerMemory,
    Sharing,
    server_memory,
    trainer_bytes,
)
from trl_r1zero.devices.training_setup import attention_kind
from trl_r1zero.trainers.memory_limits import DEFAULT_ROWS

from .findings import Finding, ok, problem, warning
from .machine import Server
from .model import Model
from .run import Run

# vLLM's own, where a recipe says nothing.
_SERVER_SEQUENCES = 256


@dataclass(frozen=True)
class TrainerMemory:
    """What a trainer's process takes.

    Attributes:
        setup: With the micro-batch as the run would cut it.
        parts: At its peak.
        device_bytes: What it may take of its device while it trains; None on CPUs.
        budget_error: Why not even one row fits; empty if one does.
    """

    setup: TrainingSetup
    parts: MemoryParts
    device_bytes: int | None
    budget_error: str = ""


def make_setup(run: Run, model: Model, longest_row: int) -> TrainingSetup:
    """What decides the memory of a process, but for the cut of micro-batches.

    Raises:
        ValueError: An optimizer whose memory is not known.
    """
    values = run.values
    fused = values.get("fused_lm_head")
    attention = attention_kind(run.recipe.instances[-1].attn_implementation)
    packed = values.get("pack_rows")
    tuning = run.method == "instruction_tuning"
    return TrainingSetup(
        weights_dtype=model.dtype,
        autocast=run.autocast and model.dtype == "float32",
        optimizer=str(getattr(values["optim"], "value", values["optim"])),
        trainable_parameters=model.trainable_parameters,
        gradient_checkpointing=bool(values["gradient_checkpointing"]),
        fused_lm_head=not tuning and (run.on_cuda if fused is None else fused),
        transformers_loss=tuning,
        attention=attention,
        packed=attention == "flash" if packed is None else packed,
        reference_model=has_reference(run, model),
        processes=run.launch.num_processes,
        sharding=run.launch.sharding,
        on_cuda=run.on_cuda,
        longest_row=longest_row,
    )


def has_reference(run: Run, model: Model) -> bool:
    """Whether a second model is kept on the device; adapters are left out for one instead."""
    if model.trainable_parameters is not None:
        return False
    if run.method == "dpo":
        return not (run.values["precompute_ref_log_probs"] or run.values["ref_device"])
    return run.method == "grpo" and bool(run.values.get("beta"))


def kept_while_sampling(run: Run, model: Model, setup: TrainingSetup) -> int:
    """Weights and optimizer state of a trainer, as the trainer itself counts them."""
    shape = model.shape
    assert shape is not None
    size = setup.weight_bytes
    trained = setup.trainable_parameters
    parameters = [ParameterFacts(shape.num_parameters, size, trained=trained is None)]
    if trained is not None:
        parameters.append(ParameterFacts(trained, 4))
    if setup.reference_model:
        parameters.append(ParameterFacts(shape.num_parameters, size, trained=False))
    launch = run.launch
    sharing = Sharing.of(launch.distributed_type, launch.num_processes, launch.zero_stage)
    return trainer_bytes(parameters, setup.optimizer, sharing)


def trainer_memory(
    run: Run, shape: ModelShape, setup: TrainingSetup, server: Server | None
) -> TrainerMemory:
    """What a process takes at its peak, with micro-batches as the run would cut them."""
    device_bytes, budget, error = bytes_for_training(run, server), None, ""
    if device_bytes is not None:
        try:
            budget = tokens_per_microbatch(shape, setup, device_bytes)
        except ValueError as reason:
            budget, error = setup.longest_row, str(reason)
    tokens = run.microbatch_tokens(setup.longest_row, budget, DEFAULT_ROWS)
    setup = replace(setup, tokens=tokens)
    return TrainerMemory(setup, training_memory(shape, setup), device_bytes, error)


def bytes_for_training(run: Run, server: Server | None) -> int | None:
    """What a trainer's process may take of its device while it trains; None on CPUs."""
    if not run.on_cuda or run.launch.processes_here > len(run.seen.devices):
        return None
    numbers = tuple(range(run.launch.processes_here))
    total = run.seen.total_bytes(numbers)
    if server is None or not (server.placement.shared and server.placement.server):
        return total
    if server.config.sleep_level:
        return total - ASLEEP_SERVER_BYTES
    return int(total * (1 - (server.config.gpu_memory_utilization or 0)))


def memory_of_host(run: Run) -> int | None:
    """The memory of this machine, for a run on its CPU; None for a machine that is assumed."""
    return None if run.machine.assumed else int(psutil.virtual_memory().total)


def check_trainer(run: Run, memory: TrainerMemory, host_bytes: int | None = None) -> list[Finding]:
    """The parts of a trainer's memory, and whether they fit.

    Args:
        run: Before its start.
        memory: Of one of its processes.
        host_bytes: What the machine has for trainers on CPUs; None if unknown.
    """
    parts, setup = memory.parts, memory.setup
    words = ", ".join(
        f"{name} {_gib(getattr(parts, name))}"
        for name in ("weights", "gradients", "optimizer", "activations", "logits", "reserved")
    )
    facts = (
        f"trainer, {_gib(parts.total)} GiB at its peak: {words} (micro-batches of up to "
        f"{setup.tokens:,} tokens, rows of up to {setup.longest_row:,})"
    )
    if memory.device_bytes is None:
        needed = parts.total * run.launch.processes_here
        if run.on_cuda or host_bytes is None or needed <= host_bytes:
            return [ok("memory", "trainer", facts)]
        return [
            problem(
                "memory",
                "trainer",
                f"{facts}; this machine has {_gib(host_bytes)} GiB",
                f"at most {_gib(host_bytes)} GiB for all processes",
                "take a smaller model, fewer tokens (max_tokens_per_microbatch), or a GPU",
            )
        ]
    have = f"{_gib(memory.device_bytes)} GiB to train with on its device"
    if parts.total > memory.device_bytes:
        advice = memory.budget_error.partition("GiB: ")[2] or (
            "leave max_tokens_per_microbatch and gradient_accumulation_steps unset, so that "
            "micro-batches are as large as fits"
        )
        return [
            problem(
                "memory",
                "trainer",
                f"{facts}; {have}",
                f"at most {_gib(memory.device_bytes)} GiB",
                advice,
            )
        ]
    if parts.total > memory.device_bytes * (1 - MARGIN):
        return [
            warning(
                "memory",
                "trainer",
                f"{facts}; {have}: less than a tenth is left for fragmentation",
                "",
                "set gradient_checkpointing: true, or max_tokens_per_microbatch lower",
            )
        ]
    return [ok("memory", "trainer", f"{facts}; {have}")]


def check_server(run: Run, model: Model, server: Server, longest_text: int) -> list[Finding]:
    """What a server does with its share of its devices, and whether that is enough.

    Args:
        run: The run.
        model: Its model, of a known architecture.
        server: Placed.
        longest_text: Tokens of the longest prompt and completion.
    """
    if not server.placement.server:
        return []
    config, shape = server.config, model.shape
    assert shape is not None
    total = run.seen.total_bytes(server.placement.server)
    share = config.gpu_memory_utilization or 0
    dtype = config.dtype
    if dtype == "auto":
        dtype = model.dtype if model.dtype != "float32" else "bfloat16"
    memory = server_memory(
        shape,
        dtype,
        config.max_model_len or longest_text,
        config.max_num_seqs or _SERVER_SEQUENCES,
        share_bytes=int(share * total),
        tensor_parallel_size=config.tensor_parallel_size,
    )
    numbers = server.placement.server
    where = f"GPU{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
    facts = (
        f"server, {share:.0%} of {where} ({_gib(total)} GiB): weights {_gib(memory.weights)} "
        f"({dtype}), work {_gib(memory.work)}, {_gib(max(0, memory.kv_bytes))} for keys and values"
    )
    return [_verdict_on_server(memory, facts, longest_text), *_check_phases(run, server)]


def _verdict_on_server(memory: ServerMemory, facts: str, longest_text: int) -> Finding:
    if memory.sequences < 1:
        missing = memory.kv_bytes_per_token * longest_text - memory.kv_bytes
        return problem(
            "memory",
            "server",
            f"{facts}: not one text of {longest_text:,} tokens fits",
            f"{_gib(missing)} GiB more",
            "give the server another device, more of this one (gpu_memory_utilization), or the "
            "trainer less (dtype: bfloat16, use_peft: true)",
        )
    count = f"{memory.sequences:,} texts of {longest_text:,} tokens at a time"
    if memory.sequences < 16:
        return warning(
            "memory",
            "server",
            f"{facts}: {count}, which is slow",
            "",
            "give the server more memory",
        )
    return ok("memory", "server", f"{facts}: {count}")


def _check_phases(run: Run, server: Server) -> list[Finding]:
    if not server.placement.shared:
        return []
    level = server.config.sleep_level
    if not level:
        return []
    numbers = server.placement.server
    total = run.seen.total_bytes(numbers)
    trains = bytes_for_training(run, server)
    return [
        ok(
            "memory",
            "phases",
            f"they take turns: while the server samples, it has "
            f"{server.config.gpu_memory_utilization or 0:.0%} of {_gib(total)} GiB, beside weights "
            f"and optimizer of the trainer; while the trainer trains, the server sleeps and the "
            f"trainer has {_gib(trains or 0)} GiB (what a sleeping server keeps is assumed, not "
            "measured)",
        )
    ]


def check_rollouts(run: Run, model: Model, setup: TrainingSetup, text: int) -> list[Finding]:
    """Whether completions that transformers generates fit: keys and values of all at a time."""
    if not run.samples or run.values.get("use_vllm") or not run.on_cuda:
        return []
    rows = run.values.get("per_device_eval_batch_size")
    slow = warning(
        "memory",
        "rollouts",
        "transformers samples, as many completions at a time as fit into memory: slow on a GPU",
        "",
        "with vLLM installed: use_vllm: true and vllm_server: {}, on one GPU too",
    )
    if rows is None:
        return [slow]
    assert model.shape is not None
    needed = rows * text * model.shape.kv_values_per_token * setup.weight_bytes
    static = training_memory(model.shape, setup).static
    have = (bytes_for_training(run, None) or 0) - static
    if needed <= have:
        return [slow]
    return [
        problem(
            "memory",
            "rollouts",
            f"transformers keeps keys and values of {rows:,} completions at a time: "
            f"{_gib(needed)} GiB, and {_gib(max(0, have))} are free",
            "a smaller batch of generation",
            "leave per_device_eval_batch_size unset, or set use_vllm: true and vllm_server: {}",
        )
    ]


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"
