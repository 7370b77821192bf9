"""Parts of the GPU check with a vLLM server: GRPO, and weight updates."""

import math
import statistics
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from check_setup import CheckSkipped, Recorder, Setup, require
from transformers import AutoModelForCausalLM

from trl_r1zero import R1ZeroGRPOConfig, R1ZeroGRPOTrainer
from trl_r1zero.devices.placement import WEIGHT_TRANSFERS
from trl_r1zero.generation.vllm_server import VLLMServerError
from trl_r1zero.recipe.task_arguments import TaskArguments
from trl_r1zero.trainers import read_metrics
from trl_r1zero.trainers.server_setup import PROBE_TOLERANCES

NUM_STEPS = 3
# On a GPU it follows from the shared device; a CPU is told, to take the same way.
SLEEP_LEVEL = 2
# Of a device, by others than the trainer while it trains: the contexts of both processes, and
# what a sleeping server does not give up. Awake, one has its weights and a cache of many GiB.
ASLEEP_BYTES = 4 * 2**30
# Weight updates that are timed; one before them is not, as buffers are made in it.
_NUM_UPDATES = {"cuda": 5, "cpu": 3}

# By device.
_RUN: dict[str, dict[str, Any]] = {
    "cuda": {
        "rollout_batch_size": 64,
        "train_batch_size": 64,
        "max_tokens_per_microbatch": 8192,
        "max_completion_length": 256,
        "gradient_checkpointing": True,
        "learning_rate": 1e-4,
    },
    "cpu": {
        "rollout_batch_size": 32,
        "train_batch_size": 32,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 16,
        "learning_rate": 1e-3,
    },
}


def odd_sum(completions: Sequence[str], completion_ids: Sequence[list[int]], **_: Any) -> Any:
    """A reward that a random model gets half of the time: its tokens are hardly ever text."""
    return [float(sum(ids) % 2) for ids in completion_ids]


def server_settings(setup: Setup, **settings: Any) -> dict[str, Any]:
    """Of a server on the trainer's own device; CUDA graphs would take a minute to record."""
    settings = {"dtype": setup.dtype_name, "max_model_len": 1024, **settings}
    if setup.on_cuda:
        return {"devices": "0", "enforce_eager": True, **settings}
    return {"cpu_kv_cache_gb": 0.5, "sleep_level": SLEEP_LEVEL, **settings}


def make_trainer(setup: Setup, folder: Path, **server: Any) -> R1ZeroGRPOTrainer:
    """A trainer whose server is ready; the same run at each call."""
    task = TaskArguments(
        task="chain_arithmetic", task_args={"num_train": 64, "num_validation": 8}
    ).load()
    model = AutoModelForCausalLM.from_pretrained(setup.model_folder(), dtype=setup.dtype)
    config = R1ZeroGRPOConfig(
        output_dir=str(folder),
        n_grpo_steps=NUM_STEPS,
        group_size=8,
        min_tokens=0,  # before them the server rules out a token that the trainer does not
        seed=0,
        eval_every=None,
        save_every=None,
        log_rollouts_every=1,
        report_to="none",
        disable_tqdm=True,
        bf16=False,  # the weights' own dtype: no autocast
        use_cpu=not setup.on_cuda,
        use_vllm=True,
        vllm_server=server_settings(setup, **server),
        vllm_check_syncs=10**6,  # at each one
        vllm_request_timeout=100.0,
        **_RUN[setup.device],
    )
    return R1ZeroGRPOTrainer(
        model=model,
        reward_funcs=odd_sum,
        args=config,
        train_dataset=task.train_dataset,
        processing_class=setup.tokenizer,
        stop=task.prompt.stop,
    )


@contextmanager
def running_trainer(
    setup: Setup, recorder: Recorder, folder: Path, **server: Any
) -> Iterator[R1ZeroGRPOTrainer]:
    """A trainer that is closed; what the start took is recorded."""
    recorder.doing("making the model")
    setup.model_folder()
    recorder.doing("starting the server")
    begun = time.perf_counter()
    trainer = make_trainer(setup, folder, **server)
    recorder.record(start_seconds=time.perf_counter() - begun)
    assert trainer.server is not None
    with closing(trainer.server):
        yield trainer


# (a) GRPO


def grpo(setup: Setup, recorder: Recorder) -> str:
    """Three steps: the probe of each weight update, losses, memory while the server sleeps."""
    folder = recorder.folder / "run"
    with running_trainer(setup, recorder, folder) as trainer:
        probes = watch_probes(trainer)
        others = watch_memory(setup, trainer)
        recorder.doing("training")
        trainer.train()
        if setup.on_cuda:
            torch.cuda.empty_cache()  # as before each step's sampling
        assert trainer.server is not None
        trainer.server.wake_up()
        awake = memory_of_others(setup)
    lines = check_run(folder, probes, setup)
    recorder.record(probes=probes, bytes_asleep=others, bytes_awake=awake, steps=lines)
    asleep = max(others)
    if setup.on_cuda:
        require(
            asleep <= ASLEEP_BYTES,
            f"while the trainer trained, others had {asleep / 2**30:.1f} GiB of the device, more "
            f"than {ASLEEP_BYTES / 2**30:g}: the server did not give up its memory",
        )
    seconds = statistics.median(line["seconds/step"] for line in lines[1:])
    said = f"{NUM_STEPS} steps, median {seconds:.2g} s; probe at most {max(probes):.1g} nats; "
    if not setup.on_cuda:  # vLLM's build for CPUs keeps its memory
        return f"{said}the server slept in each step"
    return f"{said}server {asleep / 2**30:.2f} GiB asleep, {awake / 2**30:.2f} awake"


def check_run(folder: Path, probes: Sequence[float], setup: Setup) -> list[dict[str, Any]]:
    """The metrics of a whole run, one line for each step, or a `CheckFailed`."""
    lines = [line for line in read_metrics(folder) if "loss" in line]
    steps = [line["grpo_step"] for line in lines]
    require(steps == list(range(1, NUM_STEPS + 1)), f"metrics of steps {steps}")
    tolerance = PROBE_TOLERANCES[setup.dtype_name]
    for line in lines:
        for name in ("loss", "grad_norm", "reward", "sampler_log_prob_diff/mean"):
            require(math.isfinite(line.get(name, math.nan)), f"{name} is not finite: {line}")
        require(line["grad_norm"] > 0, f"no gradient in step {line['grpo_step']}")
        require(
            line.get("seconds/server_sleep", 0) > 0,
            f"the server did not sleep while step {line['grpo_step']} was trained",
        )
        difference = line["sampler_log_prob_diff/mean"]
        require(
            difference <= tolerance,
            f"sampled tokens' log-probabilities differ by {difference:.2g} nats from the "
            f"trainer's, more than {tolerance:g}",
        )
    require(len(probes) >= NUM_STEPS, f"{len(probes)} probes in {NUM_STEPS} steps")
    require(max(probes) <= tolerance, f"a probe differs by {max(probes):.2g} nats")
    return lines


def watch_probes(trainer: R1ZeroGRPOTrainer) -> list[float]:
    """A list that every probe's difference is added to, in nats."""
    differences: list[float] = []
    server = trainer.server
    assert server is not None
    check = server.check_probe

    def check_and_keep(*probe: Any) -> float:
        differences.append(check(*probe))
        return differences[-1]

    server.check_probe = check_and_keep  # type: ignore[method-assign]
    return differences


def watch_memory(setup: Setup, trainer: R1ZeroGRPOTrainer) -> list[int]:
    """A list that the others' memory is added to before each backward pass, in bytes.

    The server sleeps then.
    """
    others: list[int] = []
    backward = trainer.accelerator.backward

    def measure_and_go_on(*args: Any, **kwargs: Any) -> None:
        others.append(memory_of_others(setup))
        backward(*args, **kwargs)

    trainer.accelerator.backward = measure_and_go_on
    return others


def memory_of_others(setup: Setup) -> int:
    """Bytes that are not this process's: of the device, or what its descendants have resident."""
    if setup.on_cuda:
        free, total = torch.cuda.mem_get_info(0)
        return total - free - torch.cuda.memory_reserved(0)
    return sum(process.memory_info().rss for process in server_processes())


def server_processes() -> list[psutil.Process]:
    """The server's processes, of which this process is an ancestor."""
    return psutil.Process().children(recursive=True)


# (b) Weight updates


def sync(setup: Setup, recorder: Recorder) -> str:
    """Seconds of a weight update by each way, and that new weights arrive."""
    num_devices = torch.cuda.device_count() if setup.on_cuda else 0
    wanted, left_out = transfers_to_time(setup.on_cuda, num_devices)
    recorder.record(left_out=left_out)
    if not wanted:
        raise CheckSkipped("; ".join(f"{name}: {reason}" for name, reason in left_out.items()))
    timed: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for transfer in wanted:  # one that fails does not keep the others from being timed
        try:
            timed[transfer] = _time_transfer(setup, recorder, transfer)
        except Exception as error:
            traceback.print_exc()
            failed[transfer] = f"{type(error).__name__}: {error}"
        setup.free_memory()  # the next server looks for its share
        recorder.record(transfers=timed, failed=failed)
    said = [
        f"{name} {found['median']:.3g} s ({found['bytes'] / found['median'] / 1e9:.2g} GB/s), "
        f"probe {found['probe_after_change']:.1g} nats"
        for name, found in timed.items()
    ]
    said += [f"{name} skipped: {reason}" for name, reason in left_out.items()]
    failures = [f"{name} failed: {reason}" for name, reason in failed.items()]
    require(not failed, "; ".join([*failures, *said]))
    return "; ".join(said)


def transfers_to_time(on_cuda: bool, num_devices: int) -> tuple[list[str], dict[str, str]]:
    """The ways of weights that can be tried here, and why the others cannot.

    Args:
        on_cuda: Whether the trainer is on a GPU.
        num_devices: GPUs in sight.
    """
    left_out = {}
    for name in WEIGHT_TRANSFERS:
        if name == "nccl" and not on_cuda:
            left_out[name] = "needs GPUs"
        elif name == "nccl" and num_devices < 2:
            left_out[name] = "needs two GPUs"
    wanted = [name for name in WEIGHT_TRANSFERS if name not in left_out]
    return wanted, left_out


def _time_transfer(setup: Setup, recorder: Recorder, transfer: str) -> dict[str, Any]:
    devices = {"devices": "1"} if transfer == "nccl" else {}
    folder = recorder.folder / transfer
    with running_trainer(setup, recorder, folder, weight_transfer=transfer, **devices) as trainer:
        recorder.doing(f"sending weights by {transfer}")
        server = trainer.server
        assert server is not None
        trainer.model.to(trainer.accelerator.device)
        server.sync_weights()
        before = trainer.check_server()
        with torch.no_grad():
            trainer.model.model.norm.weight.mul_(2.0)
        require(_probe_differs(trainer), "the probe does not see that the server has old weights")
        seconds = []
        for _ in range(_NUM_UPDATES[setup.device]):
            if setup.on_cuda:
                torch.cuda.synchronize()
            begun = time.perf_counter()
            server.sync_weights()
            seconds.append(time.perf_counter() - begun)
        return {
            "bytes": sum(info.num_bytes for info in server.weights.infos()),
            "seconds": seconds,
            "median": statistics.median(seconds),
            "min": min(seconds),
            "max": max(seconds),
            "probe": before,
            "probe_after_change": trainer.check_server(),  # raises if they differ
        }


def _probe_differs(trainer: R1ZeroGRPOTrainer) -> bool:
    try:
        trainer.check_server()
    except VLLMServerError:
        return True
    return False
