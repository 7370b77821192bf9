"""What a run starts with: its model, data, prompt, reward and hardware."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import AutoConfig

from trl_r1zero.devices import machine_facts, place
from trl_r1zero.evaluation.files import file_sha256
from trl_r1zero.generation.vllm_server import VLLMServerConfig, is_cpu_build
from trl_r1zero.recipe.task_arguments import LoadedTask
from trl_r1zero.rewards import REWARDS, reward_identity

from .rules import question_hashes, rows_facts, sha256_of


def collect_facts(
    values: Mapping[str, Any], task: LoadedTask, num_processes: int, use_cpu: bool
) -> dict[str, Any]:
    """The facts that `check_facts` checks, as JSON can hold them: of a recipe's values, its task
    (prompt, reward and data), the trainer's processes, and whether it trains on a CPU."""
    data = {"training": task.train_dataset, "validation": task.eval_dataset}
    training, validation = (question_hashes(rows["question"]) for rows in data.values())
    reward_fn = task.reward.reward_fn
    names = [name for name, known in REWARDS.items() if known is reward_fn]
    return {
        "model": model_facts(str(values["model_name_or_path"]), values["model_revision"]),
        **{
            name: rows_facts(zip(rows["question"], rows["ground_truth"], strict=True))
            for name, rows in data.items()
        },
        "num_validation_questions": len(training & validation),
        "prompt": sha256_of(task.prompt.template),
        "reward": names[0] if names else reward_identity(reward_fn),
        "hardware": hardware_facts(values, num_processes, use_cpu),
    }


def model_facts(name: str, revision: str | None) -> dict[str, Any]:
    """The weights that training starts from; those of the hub are downloaded if need be.

    Returns:
        `name`, `revision` (the commit on the hub; None for a folder), `architecture`,
        `num_parameters` (tied ones once) and `weights` (the sha256 of each file).
    """
    folder = Path(name)
    if not folder.is_dir():
        patterns = ["*.safetensors", "*.json"]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"model_name_or_path: {name} has no *.safetensors file, whose hash a submission "
            "records; save the model with save_pretrained"
        )
    num_parameters = 0
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - it is not a dict
                num_parameters += math.prod(file.get_slice(key).get_shape())
    return {
        "name": name,
        "revision": None if folder == Path(name) else folder.name,
        "architecture": (AutoConfig.from_pretrained(folder).architectures or ["unknown"])[0],
        "num_parameters": num_parameters,
        "weights": {file.name: file_sha256(file) for file in files},
    }


def hardware_facts(values: Mapping[str, Any], num_processes: int, use_cpu: bool) -> dict[str, Any]:
    """GPUs of the trainer's processes (one each) and of its server together, and CPUs."""
    machine, used = machine_facts(), set[int]()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))
    if machine.devices and not use_cpu:
        used |= set(range(local))
        if values["use_vllm"]:
            # Somebody else's server, which a rule forbids, counts as an own one.
            server = VLLMServerConfig.from_settings(values["vllm_server"] or {})
            placement = place(
                machine.visible,
                num_trainers=local,
                trainer_on_cuda=True,
                server_on_cuda=not is_cpu_build(),
                server_devices=None if server.devices is None else str(server.devices),
                num_server_devices=server.num_devices,
            )
            used |= set(placement.server)
    return {
        "num_gpus": len(used) + (num_processes - local if used else 0),
        "gpu_names": [device.name for n, device in enumerate(machine.devices) if n in used],
        "num_processes": num_processes,
        "num_cpus": os.cpu_count(),
    }
