"""What a server's settings leave open is decided from the machine; what they say stays."""

from dataclasses import asdict

import pytest

from trl_r1zero.devices import MachineFacts
from trl_r1zero.generation import vllm_server
from trl_r1zero.generation.server_placement import TrainerFacts, resolve_server
from trl_r1zero.generation.vllm_server import VLLMServer, VLLMServerConfig

QWEN_BF16 = 6 * 1_543_714_304  # weights and AdamW's two moments


def resolved(machine: str, settings: dict | None = None, **others):
    where = {
        "num_trainers": 1,
        "trainer_on_cuda": machine != "cpu",
        "server_on_cuda": machine != "cpu",
        "trainer_bytes": QWEN_BF16,
    }
    config = VLLMServerConfig.from_settings(settings or {})
    facts = TrainerFacts(**{**where, **others})
    return resolve_server(config, MachineFacts.assume(machine), facts)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("cpu", (None, None, 0, "gloo")),
        ("24GiB", ("0", 0.51, 2, "ipc")),
        ("80GiB", ("0", 0.85, 2, "ipc")),
        ("2x80GiB", ("1", 0.9, 0, "nccl")),
        ("8x80GiB", ("1", 0.9, 0, "nccl")),
    ],
)
def test_an_empty_setting_fits_each_machine(machine, expected):
    config, placement = resolved(machine)
    found = (
        config.devices,
        config.gpu_memory_utilization,
        config.sleep_level,
        config.weight_transfer,
    )
    assert found == expected
    assert placement.weight_transfer == config.weight_transfer
    assert placement.sleep_level == config.sleep_level


@pytest.mark.parametrize("machine", ["24GiB", "80GiB", "2x80GiB", "8x80GiB"])
def test_the_server_is_started_accordingly(machine, monkeypatch):
    monkeypatch.setattr(vllm_server, "version", lambda name: "0.31.0")
    count = len(MachineFacts.assume(machine).devices)
    physical = ["4", "5", "6", "7", "8", "9", "10", "11"][:count]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(physical))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    server = VLLMServer("m", resolved(machine)[0])
    shared = count == 1
    assert server.environment()["CUDA_VISIBLE_DEVICES"] == ("4" if shared else "5")
    command = server.command()
    assert ("--enable-sleep-mode" in command) == shared
    backend = "trl_r1zero_ipc" if shared else "nccl"
    assert f'--weight-transfer-config={{"backend": "{backend}"}}' in command


def test_what_is_said_stays():
    said = {
        "devices": "0",
        "gpu_memory_utilization": 0.3,
        "sleep_level": 1,
        "weight_transfer": "gloo",
        "max_model_len": 2048,
    }
    config, placement = resolved("2x80GiB", said)
    assert asdict(config) == asdict(VLLMServerConfig.from_settings(said))
    assert (placement.weight_transfer, placement.why) == ("gloo", "as the recipe says")
    assert placement.sleep_level == 1


def test_a_server_that_is_to_stay_awake_leaves_room_to_train():
    config, _ = resolved("80GiB", {"sleep_level": 0})
    assert (config.sleep_level, config.gpu_memory_utilization) == (0, 0.4)


def test_a_server_on_a_cpu_sleeps_if_asked():
    """So that the order of a shared GPU can be run without one."""
    config, placement = resolved("cpu", {"sleep_level": 2, "weight_transfer": "ipc"})
    assert (config.sleep_level, config.weight_transfer) == (2, "ipc")
    assert (placement.sleep_level, placement.weight_transfer) == (2, "ipc")


def test_staleness_wants_a_server_that_is_awake():
    config, placement = resolved("80GiB", samples_while_training=True)
    assert (config.sleep_level, placement.sleep_level) == (0, 0)
    assert config.gpu_memory_utilization == 0.4
    with pytest.raises(ValueError, match="sleep_level: 2, so it sleeps then; set sleep_level to 0"):
        resolved("80GiB", {"sleep_level": 2}, samples_while_training=True)


@pytest.mark.parametrize(
    ("machine", "settings", "others", "message"),
    [
        ("80GB", {"weight_transfer": "nccl"}, {}, "both are on GPU 0; set auto"),
        ("2x80GB", {"weight_transfer": "nccl", "devices": 0}, {}, "both are on GPU 0"),
        ("2x80GB", {"weight_transfer": "ipc"}, {}, "it needs trainer and server on one device"),
        ("cpu", {"weight_transfer": "nccl"}, {}, "needs trainer and server on GPUs"),
        ("80GB", {"weight_transfer": "nccl"}, {"trainer_on_cuda": False}, "on GPUs"),
        ("80GB", {"weight_transfer": "ipc"}, {"trainer_on_cuda": False}, "on one device"),
        ("80GB", {"weight_transfer": "ipc"}, {"server_on_cuda": False}, "on one device"),
        ("80GB", {"weight_transfer": "none"}, {}, "the trainer has to send its weights"),
        ("80GB", {"devices": 1}, {}, "no device '1'"),
        ("24GB", {}, {"trainer_bytes": 12 * 1_800_000_000}, "no room for a vLLM server"),
        ("cpu", {}, {"server_on_cuda": True}, "vLLM for GPUs is installed, but this run sees no"),
    ],
)
def test_contradictions(machine, settings, others, message):
    with pytest.raises(ValueError, match=message):
        resolved(machine, settings, **others)


@pytest.mark.parametrize("transfer", ["nccl", "gloo"])
def test_ways_that_fit_two_gpus(transfer):
    config, _ = resolved("2x80GB", {"weight_transfer": transfer})
    assert config.weight_transfer == transfer
