"""What a run starts with, measured on the spot: model, data, prompt, reward, hardware."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import AutoConfig

from trl_r1zero.data.prompts import Prompt
from trl_r1zero.devices import MachineFacts, machine_facts, place
from trl_r1zero.evaluation.files import file_sha256
from trl_r1zero.generation.vllm_server import VLLMServerConfig, is_cpu_build
from trl_r1zero.recipe.task_arguments import LoadedTask
from trl_r1zero.rewards import REWARDS, reward_identity

from .rules import question_hash, rows_sha256, sha256_of


def collect_facts(
    values: Mapping[str, Any], task: LoadedTask, num_processes: int, use_cpu: bool
) -> dict[str, Any]:
    """The facts that `check_facts` holds against the rules, as JSON can hold them.

    Args:
        values: The recipe's.
        task: Its prompt, reward and data.
        num_processes: Of the trainer.
        use_cpu: Whether it trains on a CPU.

    Raises:
        FileNotFoundError: The model has no safetensors files.
    """
    validation = list(
        zip(task.eval_dataset["question"], task.eval_dataset["ground_truth"], strict=True)
    )
    training = list(
        zip(task.train_dataset["question"], task.train_dataset["ground_truth"], strict=True)
    )
    return {
        "model": model_facts(str(values["model_name_or_path"]), values["model_revision"]),
        "training": {
            **_source_facts(values["train_data"]),
            "num_rows": len(training),
            "sha256": rows_sha256(training),
        },
        "validation": {
            **_source_facts(values["eval_data"]),
            **validation_facts(validation),
        },
        "prompt": prompt_facts(task.prompt),
        "reward": reward_name(task.reward.reward_fn),
        "hardware": hardware_facts(values, num_processes, use_cpu),
    }


def validation_facts(rows: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Number and fingerprint of questions and their ground truths."""
    return {
        "num_rows": len(rows),
        "num_distinct": len({question_hash(question) for question, _ in rows}),
        "sha256": rows_sha256(rows),
    }


def prompt_facts(prompt: Prompt) -> dict[str, Any]:
    return {
        "name": prompt.name,
        "sha256": sha256_of(prompt.template),
        "stop": list(prompt.stop),
    }


def reward_name(reward_fn: Any) -> str:
    """The name in `REWARDS` of exactly this function, or its dotted path."""
    for name, known in REWARDS.items():
        if known is reward_fn:
            return name
    return reward_identity(reward_fn)


def model_facts(name: str, revision: str | None) -> dict[str, Any]:
    """What the weights are that training starts from; those of the hub are downloaded if need be.

    Returns:
        `name`, `revision` (the commit on the hub; None for a folder), `architecture`,
        `num_parameters` (tied ones once) and `weights` (the sha256 of each file).

    Raises:
        FileNotFoundError: There are no safetensors files.
    """
    is_folder = Path(name).is_dir()
    folder = Path(
        name
        if is_folder
        else snapshot_download(name, revision=revision, allow_patterns=["*.safetensors", "*.json"])
    )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"model_name_or_path: {name} has no *.safetensors file, whose hash a submission "
            "records; save the model with save_pretrained"
        )
    architectures = AutoConfig.from_pretrained(folder).architectures or ["unknown"]
    return {
        "name": name,
        "revision": None if is_folder else folder.name,
        "architecture": architectures[0],
        "num_parameters": sum(map(_num_parameters, files)),
        "weights": {file.name: file_sha256(file) for file in files},
    }


def hardware_facts(values: Mapping[str, Any], num_processes: int, use_cpu: bool) -> dict[str, Any]:
    """GPUs of the trainer's processes and of the server together, and the machine's CPUs.

    A process keeps to one GPU (`one_device`); where the server is, `place` decides, as in the run.
    """
    num_gpus, names = 0, []
    machine = machine_facts()
    if machine.devices and not use_cpu:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))
        used = set(range(local))
        if values["use_vllm"]:
            used |= set(_server_devices(values["vllm_server"], machine, local))
        names = [device.name for number, device in enumerate(machine.devices) if number in used]
        num_gpus = num_processes - local + len(used)
    return {
        "num_gpus": num_gpus,
        "gpu_names": names,
        "num_processes": num_processes,
        "num_cpus": os.cpu_count(),
        "machine": platform.machine(),
    }


def _server_devices(
    settings: Mapping[str, Any] | None, machine: MachineFacts, num_trainers: int
) -> tuple[int, ...]:
    if settings is None:  # somebody else's server: wherever it is
        return tuple(range(len(machine.devices)))
    config = VLLMServerConfig.from_settings(settings)
    return place(
        machine.visible,
        num_trainers=num_trainers,
        trainer_on_cuda=True,
        server_on_cuda=not is_cpu_build(),
        server_devices=None if config.devices is None else str(config.devices),
        num_server_devices=config.num_devices,
    ).server


def _source_facts(source: str | None) -> dict[str, Any]:
    path = Path(source).expanduser() if source else None
    return {
        # The file's own name says enough, and nothing of the machine's folders.
        "source": path.name if path is not None and path.is_file() else source,
        "file_sha256": file_sha256(path) if path is not None and path.is_file() else None,
    }


def _num_parameters(path: Path) -> int:
    total = 0
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dict
            count = 1
            for size in file.get_slice(name).get_shape():
                count *= size
            total += count
    return total
