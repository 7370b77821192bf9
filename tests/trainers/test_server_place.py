"""A trainer's own server is placed from what the trainer is, and all processes learn of errors."""

import time
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from launching import launch
from peft import LoraConfig, get_peft_model
from test_launch import RECIPE
from tiny_grpo import TASK, make_trainer
from tiny_models import make_tiny_model
from torch import nn

from trl_r1zero import R1ZeroGRPOConfig
from trl_r1zero.devices import DeviceFacts, MachineFacts, visible_devices
from trl_r1zero.devices.memory import Sharing
from trl_r1zero.generation.vllm_server import installed_vllm
from trl_r1zero.generation.vllm_server_config import VLLMServerConfig
from trl_r1zero.trainers import server_place
from trl_r1zero.trainers.server_place import parameter_facts, place_own_server, sharing_of

needs_vllm = pytest.mark.skipif(installed_vllm() is None, reason="vLLM is not installed")


def accelerator(kind=DistributedType.NO, processes=1, zero_stage=2):
    plugin = SimpleNamespace(zero_stage=zero_stage)
    return SimpleNamespace(
        device=torch.device("cuda"),
        is_main_process=True,
        num_processes=processes,
        distributed_type=kind,
        state=SimpleNamespace(deepspeed_plugin=plugin),
    )


def arguments(settings: dict | None = None, **others):
    return SimpleNamespace(vllm_server=settings or {}, optim="adamw_torch_fused", **others)


@pytest.fixture
def on_gpus(monkeypatch):
    """A machine of so many GPUs, with vLLM for GPUs."""

    def see(
        count: int,
        total_bytes: int = 2**30,
        variable: str | None = None,
        mine: int | None = None,
    ) -> None:
        environment = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
        facts = MachineFacts(
            (DeviceFacts(total_bytes),) * count, visible_devices(environment, count)
        )
        monkeypatch.setattr(server_place, "machine_facts", lambda: facts)
        monkeypatch.setattr(server_place, "is_cpu_build", lambda: False)
        monkeypatch.setattr(server_place, "bytes_to_train_with", lambda device: mine or total_bytes)
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    return see


def test_one_gpu_is_shared_by_what_the_model_leaves(on_gpus, capsys):
    on_gpus(1, total_bytes=10 * 2**30)
    # 2**28 numbers with AdamW: 3 x 1 GiB in float32, and 3 GiB of reserve.
    model = nn.Linear(2**14, 2**14, bias=False, device="meta")
    config = place_own_server(arguments(), accelerator(), [model])
    assert (config.devices, config.sleep_level, config.weight_transfer) == ("0", 2, "ipc")
    assert config.gpu_memory_utilization == 0.4
    said = capsys.readouterr().err
    assert "trainer on GPU 0, vLLM server on the same: weights by ipc" in said
    assert "sleeps while the trainer trains; it takes 40% of its GPU's memory" in said
    # A reference model, which is not trained, is on the device too.
    reference = nn.Linear(2**14, 2**14, bias=False, device="meta").requires_grad_(False)
    config = place_own_server(arguments(), accelerator(), [model, reference])
    assert config.gpu_memory_utilization == 0.3
    # A display, or another program, has a GiB of it.
    on_gpus(1, total_bytes=10 * 2**30, mine=9 * 2**30)
    config = place_own_server(arguments(), accelerator(), [model])
    assert config.gpu_memory_utilization == 0.3


def test_two_gpus_are_one_each(on_gpus, capsys):
    on_gpus(2)
    config = place_own_server(arguments(), accelerator(), [nn.Linear(2, 2)])
    assert (config.devices, config.sleep_level, config.weight_transfer) == ("1", 0, "nccl")
    assert capsys.readouterr().err.count("\n") == 1  # said once


def test_trainers_of_other_machines_take_no_gpu_here(on_gpus, monkeypatch):
    on_gpus(3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    many = accelerator(DistributedType.MULTI_GPU, processes=4)
    assert place_own_server(arguments(), many, [nn.Linear(2, 2)]).devices == "2"


def test_staleness_keeps_the_server_awake(on_gpus):
    on_gpus(1)
    config = place_own_server(arguments(max_staleness=1), accelerator(), [nn.Linear(2, 2)])
    assert config.sleep_level == 0


def test_parameters_are_counted_once_and_as_zero3_leaves_them():
    layer = nn.Linear(4, 4, bias=False)
    layer.weight.ds_numel = 64  # an empty tensor in place of one that is shared out
    tied = nn.ModuleList([layer, layer])
    (facts,) = parameter_facts([tied, layer])
    assert (facts.count, facts.itemsize, facts.trained) == (64, 4, True)


@pytest.mark.parametrize(
    ("kind", "processes", "stage", "sharing"),
    [
        (DistributedType.NO, 1, 0, Sharing()),
        (DistributedType.MULTI_GPU, 4, 0, Sharing(gradient_buckets=True)),
        (DistributedType.FSDP, 4, 0, Sharing(weights=4, states=4)),
        (DistributedType.DEEPSPEED, 4, 2, Sharing(states=4, master_weights=True)),
        (DistributedType.DEEPSPEED, 4, 3, Sharing(weights=4, states=4, master_weights=True)),
    ],
)
def test_sharing_out(kind, processes, stage, sharing):
    assert sharing_of(accelerator(kind, processes, stage)) == sharing


# From the trainer on


@needs_vllm
def test_a_trainer_starts_its_server_with_everything_decided(
    tiny_model_folder, tokenizer, tmp_path, monkeypatch
):
    """The real trainer, up to where a server would be started."""
    started = []

    class Started(Exception):
        pass

    def start(model, accelerator, tokenizer, setup, timer):
        started.append(setup.server)
        raise Started

    monkeypatch.setattr(server_place, "ServerGeneration", start)
    model = make_tiny_model(tokenizer)
    model.name_or_path = str(tiny_model_folder)
    settings = {"use_vllm": True, "vllm_server": {"max_model_len": 64, "sleep_level": 2}}
    with pytest.raises(Started):
        make_trainer(tokenizer, tmp_path, model=model, stop=TASK.prompt.stop, **settings)
    (config,) = started
    assert (config.devices, config.sleep_level, config.weight_transfer) == (None, 2, "gloo")
    assert config.max_model_len == 64


@needs_vllm
@pytest.mark.slow
def test_all_processes_end_where_the_server_has_no_place(tiny_model_folder, tmp_path):
    """The first process decides; the second one must not wait for it."""
    recipe = {
        **RECIPE,
        "report_to": "none",
        "use_cpu": True,
        "use_vllm": True,
        "vllm_server": {"devices": "1"},
    }
    began = time.monotonic()
    done = launch(recipe, tmp_path / "run", tiny_model_folder, processes=2)
    assert done.returncode != 0
    stderr = done.stderr if isinstance(done.stderr, str) else done.stderr.decode()
    error = "error: vllm_server's devices is '1', but vLLM's build for CPUs is installed"
    assert stderr.count(error) == 2
    assert time.monotonic() - began < 240  # and not the group's 30 minutes


@pytest.mark.parametrize(
    ("way", "on_cpu", "sleep_level", "rank"),
    [
        ("auto", False, 0, 8),
        ("auto", True, 0, None),  # adapters cost more at each token there than their way saves
        ("adapters", True, 0, 8),
        ("merged", False, 0, None),
        ("auto", False, 2, None),  # it forgets its own weights
    ],
)
def test_an_own_server_is_started_for_the_adapters_it_gets(
    way, on_cpu, sleep_level, rank, tokenizer, monkeypatch, tmp_path
):
    base = make_tiny_model(tokenizer)
    base.name_or_path = str(tmp_path)
    model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear"))
    config = VLLMServerConfig(sleep_level=sleep_level)
    monkeypatch.setattr(server_place, "place_own_server", lambda *_: config)
    monkeypatch.setattr(server_place, "is_cpu_build", lambda: on_cpu)
    monkeypatch.setattr(server_place, "ServerGeneration", lambda *given: given[3])
    args = R1ZeroGRPOConfig(
        output_dir=str(tmp_path),
        use_vllm=True,
        vllm_server={},
        vllm_lora=way,
        max_staleness=2,
        old_log_probs="sampler",
        loss_type="grpo_clip",
    )
    policy = SimpleNamespace(
        args=args, accelerator=accelerator(), model=lambda: model, reference=lambda: None
    )
    server = server_place.connect_to_server(policy, tokenizer, None).server
    assert server.max_lora_rank == rank
    assert server.max_loras == (1 if rank is None else 3)
    if sleep_level == 2:
        args.vllm_lora = "adapters"
        with pytest.raises(ValueError, match=r"gives up its own weights when it sleeps \(level 2"):
            server_place.connect_to_server(policy, tokenizer, None)
