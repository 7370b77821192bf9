"""A trainer's vLLM server: which it is, and where one of its own goes."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.training_args import OptimizerNames

from trl_r1zero.common.processes import from_main_process
from trl_r1zero.devices import machine_facts
from trl_r1zero.devices.facts import ipc_works
from trl_r1zero.devices.memory import ParameterFacts, Sharing, trainer_bytes
from trl_r1zero.generation.server_placement import TrainerFacts, resolve_server
from trl_r1zero.generation.vllm_server import VLLMServerConfig, is_cpu_build

from .memory_limits import bytes_to_train_with
from .policy_forward import PolicyForward
from .policy_weights import lora_plan
from .server_generation import ServerGeneration
from .server_setup import ServerAddress, ServerSetup
from .timing import StepTimer


def connect_to_server(
    policy: PolicyForward, tokenizer: PreTrainedTokenizerBase, timer: StepTimer
) -> ServerGeneration:
    """The vLLM server that the settings name, or a new one; a collective call.

    Raises:
        ValueError: A server cannot be started from this model, or there is no place for it.
        VLLMServerError: It does not come up, or takes no weights.
    """
    args, model = policy.args, policy.model()
    server: VLLMServerConfig | ServerAddress
    staleness = getattr(args, "max_staleness", 0)
    sharded = sharing_of(policy.accelerator).weights > 1
    lora = lora_plan(model, args.vllm_lora, sharded, 1 if staleness < 2 else staleness + 1)
    if args.vllm_server is None:
        server = args.running_servers
    else:
        if not model.name_or_path:
            raise ValueError(
                "vllm_server starts a server, but the model is an object that was loaded from "
                "nowhere; save it to a folder, and give the trainer that"
            )
        models = [each for each in (model, policy.reference()) if each is not None]
        server = place_own_server(args, policy.accelerator, models)
        # On a CPU vLLM's adapters cost more at each token than their way saves.
        if (lora.way == "adapters" or (lora.rank and not is_cpu_build())) and lora.go_alone(
            lora.rank or None, server.sleep_level or 0
        ):
            most = max(lora.rank, server.max_lora_rank or 0)
            server = replace(server, max_lora_rank=most, max_loras=lora.versions)
    setup = ServerSetup(
        server,
        model_path=model.name_or_path,
        log_path=Path(args.output_dir or ".", "vllm_server.log"),
        group_port=args.vllm_group_port,
        request_timeout_seconds=args.vllm_request_timeout,
        lora=lora,
    )
    return ServerGeneration(model, policy.accelerator, tokenizer, setup, timer)


def place_own_server(
    args: Any, accelerator: Accelerator, models: Sequence[nn.Module]
) -> VLLMServerConfig:
    """The settings of `args.vllm_server`, with what they leave open decided; a collective call.

    Args:
        args: The trainer's config.
        accelerator: Its accelerator.
        models: What it keeps on its device: the policy, and a reference if there is one.

    Raises:
        ValueError: On every process: see `resolve_server`.
        VLLMServerError: On every process: vLLM is not installed.
    """
    return from_main_process(lambda: _place(args, accelerator, models))


def _place(args: Any, accelerator: Accelerator, models: Sequence[nn.Module]) -> VLLMServerConfig:
    facts = machine_facts()
    mine = bytes_to_train_with(accelerator.device)
    config, placement = resolve_server(
        VLLMServerConfig.from_settings(args.vllm_server),
        facts,
        TrainerFacts(
            num_trainers=int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)),
            trainer_on_cuda=accelerator.device.type == "cuda",
            server_on_cuda=not is_cpu_build(),
            trainer_bytes=trainer_bytes(
                parameter_facts(models), OptimizerNames(args.optim).value, sharing_of(accelerator)
            ),
            others_bytes=0 if mine is None else facts.total_bytes((0,)) - mine,
            samples_while_training=bool(getattr(args, "max_staleness", 0)),
            ipc_works=ipc_works(),
        ),
    )
    share = config.gpu_memory_utilization
    memory = "" if share is None else f"; it takes {share:.0%} of its GPU's memory"
    print(f"{placement.in_words()}{memory}", file=sys.stderr, flush=True)
    return config


def parameter_facts(models: Sequence[nn.Module]) -> list[ParameterFacts]:
    """The parameters of all models, each once."""
    parameters = {id(p): p for model in models for p in model.parameters()}
    return [
        # ZeRO-3 leaves an empty tensor in place of a parameter, with its size beside.
        ParameterFacts(getattr(p, "ds_numel", p.numel()), p.element_size(), p.requires_grad)
        for p in parameters.values()
    ]


def sharing_of(accelerator: Accelerator) -> Sharing:
    """What the launcher said about sharing out weights and optimizer state."""
    kind = accelerator.distributed_type
    deepspeed = kind == DistributedType.DEEPSPEED
    stage = accelerator.state.deepspeed_plugin.zero_stage if deepspeed else None
    return Sharing.of(kind.value, accelerator.num_processes, stage)
