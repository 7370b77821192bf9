"""VLLMServer: what it is started with, that it answers, and that nothing is left of it."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap

import psutil
import pytest
import requests

from trl_r1zero.generation import vllm_server as module
from trl_r1zero.generation.vllm_server import (
    VLLMServer,
    VLLMServerConfig,
    VLLMServerError,
    installed_vllm,
    is_cpu_build,
)

needs_vllm = pytest.mark.skipif(installed_vllm() is None, reason="vLLM is not installed")


@pytest.fixture(params=["0.31.0", "0.31.0+cpu"], ids=["gpu", "cpu"])
def on_cpu(request, monkeypatch):
    """Both builds of vLLM, as their metadata tell them apart."""
    monkeypatch.setattr(module, "version", lambda name: {"vllm": request.param}[name])
    return request.param.endswith("+cpu")


def set_visible(monkeypatch, variable: str | None, count: int) -> None:
    """CUDA_VISIBLE_DEVICES, and the number of devices that CUDA finds with it."""
    if variable is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)


def flags(config: VLLMServerConfig) -> list[str]:
    command = VLLMServer("owner/model", config).command()
    serve = command.index("serve")
    assert command[:serve] == [sys.executable, "-P", "-m", "vllm.entrypoints.cli.main"]
    assert command[serve + 1] == "owner/model"
    return command[serve + 2 :]


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 0}, "port must be between 1 and 65535, got 0"),
        ({"port": "8000"}, "port must be int or null, got '8000'"),
        ({"max_model_len": True}, "max_model_len must be int or null, got True"),
        ({"cpu_threads": 0}, "cpu_threads must be at least 1, got 0"),
        ({"host": ""}, "host must be an address, such as 127.0.0.1, got ''"),
        ({"dtype": "fp8"}, "dtype must be one of auto, bfloat16, float16, float32, got 'fp8'"),
        ({"gpu_memory_utilization": 90}, r"gpu_memory_utilization must be in \(0, 1\], got 90"),
        ({"cpu_kv_cache_gb": 0.0}, "cpu_kv_cache_gb must be above 0, got 0.0"),
        ({"gpu_memory_utilization": 0.0}, r"gpu_memory_utilization must be in \(0, 1\], got 0.0"),
        ({"weight_transfer": "rdma"}, "must be one of auto, nccl, ipc, gloo, none, got 'rdma'"),
        ({"sleep_level": 3}, "sleep_level must be one of 0, 1, 2, got 3"),
        ({"sleep_level": True}, "sleep_level must be int or null, got True"),
        ({"extra_args": "--seed"}, "extra_args must be list of str, got '--seed'"),
        ({"extra_args": ["--seed", 1]}, "extra_args must be list of str"),
        ({"max_model_length": 8}, "unknown setting of a vLLM server 'max_model_length'; did you"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        VLLMServerConfig.from_settings(settings)


def test_devices_may_be_a_number():
    assert VLLMServerConfig.from_settings({"devices": 1}).devices == "1"


def test_command(on_cpu):
    config = VLLMServerConfig(
        port=8000, max_model_len=64, cpu_kv_cache_gb=0.5, extra_args=["--seed", "3"]
    )
    backend = "gloo" if on_cpu else "nccl"
    expected = {
        "--host=127.0.0.1",
        "--port=8000",
        "--dtype=auto",
        "--tensor-parallel-size=1",
        "--data-parallel-size=1",
        "--generation-config=vllm",
        "--logprobs-mode=processed_logprobs",
        "--max-logprobs=-1",
        "--max-model-len=64",
        f'--weight-transfer-config={{"backend": "{backend}"}}',
        "--disable-uvicorn-access-log",
    }
    if on_cpu:  # half a GiB is 2**29 bytes
        expected |= {
            "--kv-cache-memory-bytes=536870912",
            "--no-enable-chunked-prefill",
            "--enforce-eager",
        }
    else:
        expected |= {"--gpu-memory-utilization=0.9"}
    *own, flag, value = flags(config)
    assert (flag, value) == ("--seed", "3")  # last: they win
    assert set(own) == expected
    assert len(own) == len(expected)


def test_enforce_eager_as_said(on_cpu):
    assert "--enforce-eager" in flags(VLLMServerConfig(enforce_eager=True))
    assert "--enforce-eager" not in flags(VLLMServerConfig(enforce_eager=False))


@pytest.mark.parametrize(
    ("transfer", "backend"), [("gloo", "gloo"), ("ipc", "trl_r1zero_ipc"), ("nccl", "nccl")]
)
def test_the_engine_of_each_way_of_weights(transfer, backend, on_cpu):
    if transfer == "nccl" and on_cpu:
        pytest.skip("vLLM's build for CPUs has none")
    words = flags(VLLMServerConfig(weight_transfer=transfer))
    (value,) = [word.partition("=")[2] for word in words if word.startswith("--weight-transfer")]
    assert json.loads(value) == {"backend": backend}


@pytest.mark.parametrize("level", [None, 0, 1, 2])
def test_a_server_that_is_to_sleep_is_told_so(level, on_cpu):
    words = flags(VLLMServerConfig(sleep_level=level))
    # vLLM's build for CPUs refuses the flag.
    assert ("--enable-sleep-mode" in words) == (bool(level) and not on_cpu)


def test_memory_share_as_said(on_cpu):
    share = "--gpu-memory-utilization=0.35"
    assert (share in flags(VLLMServerConfig(gpu_memory_utilization=0.35))) == (not on_cpu)


def test_without_weight_transfer_there_are_no_development_endpoints(on_cpu, monkeypatch):
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    config = VLLMServerConfig(weight_transfer="none")
    assert not [flag for flag in flags(config) if "weight-transfer" in flag]
    assert VLLMServer("m", config).environment()["VLLM_SERVER_DEV_MODE"] == "0"
    assert VLLMServer("m").environment()["VLLM_SERVER_DEV_MODE"] == "1"


def test_environment_is_not_the_trainers(on_cpu, monkeypatch):
    trainer = {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_PORT": "29500",
        "ACCELERATE_USE_FSDP": "true",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "40",
        "CUDA_VISIBLE_DEVICES": "0",
        "HF_HOME": "/models",
    }
    for name, value in trainer.items():
        monkeypatch.setenv(name, value)
    environment = VLLMServer("m", VLLMServerConfig(cpu_threads=3)).environment()
    left = {name: environment[name] for name in trainer if name in environment}
    expected = {"CUDA_VISIBLE_DEVICES": "0", "HF_HOME": "/models"}
    if on_cpu:
        expected["OMP_NUM_THREADS"] = "3"
        assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    else:
        expected["VLLM_CPU_KVCACHE_SPACE"] = "40"  # nobody asks for it
    assert left == expected
    assert environment["VLLM_NO_USAGE_STATS"] == "1"


GPUS = ("GPU-8932f937", "GPU-1b2c3d4e")


@pytest.mark.parametrize(
    ("variable", "count", "devices", "physical"),
    [
        (None, 2, 1, "1"),
        ("4,5", 2, "1", "5"),
        ("4,5", 2, "0", "4"),
        ("4,5,6,7", 4, "2,3", "6,7"),
        ("4,5,6,7", 4, "3,1", "7,5"),
        (" 4 , 5 ", 2, "1", "5"),
        ("6,7,-1,3", 2, "1", "7"),
        (",".join(GPUS), 2, "1", GPUS[1]),
        (",".join(GPUS), 2, GPUS[0], GPUS[0]),
        ("4,5", 2, None, "4,5"),
    ],
)
def test_devices_count_within_what_the_user_made_visible(
    variable, count, devices, physical, monkeypatch
):
    """Where physical GPUs 4 and 5 are the user's, the server's number 1 is number 5."""
    monkeypatch.setattr(module, "version", lambda name: "0.31.0")
    set_visible(monkeypatch, variable, count)
    environment = VLLMServer("m", VLLMServerConfig(devices=devices)).environment()
    assert environment["CUDA_VISIBLE_DEVICES"] == physical


@pytest.mark.parametrize(
    ("variable", "count", "devices", "message"),
    [
        ("0", 1, "1", "no device '1': this run sees 1 GPU .*given gpu_ids, remove it"),
        ("4,5", 2, "5", r"no device '5': this run sees 2 GPUs \(CUDA_VISIBLE_DEVICES is '4,5'\)"),
        ("6,-1,7", 1, "1", "this run sees 1 GPU"),
        ("", 0, "0", r"sees no GPU \(CUDA_VISIBLE_DEVICES is ''\)"),
        ("4,5", 2, "1,1", "names a device twice"),
        ("4,5", 2, "cuda:1", "no device 'cuda:1'"),
        ("4,5", 2, "0,", "no device ''"),
        (",".join(GPUS), 2, "GPU-00000000", "no device 'GPU-00000000'"),
    ],
)
def test_devices_that_are_not_there(variable, count, devices, message, monkeypatch):
    monkeypatch.setattr(module, "version", lambda name: "0.31.0")
    set_visible(monkeypatch, variable, count)
    with pytest.raises(VLLMServerError, match=message):
        VLLMServer("m", VLLMServerConfig(devices=devices)).environment()


def test_the_build_for_cpus_has_no_devices(monkeypatch):
    monkeypatch.setattr(module, "version", lambda name: "0.31.0+cpu")
    with pytest.raises(VLLMServerError, match="devices is '1', but vLLM's build for CPUs"):
        VLLMServer("m", VLLMServerConfig(devices=1)).start()


def test_default_threads_leave_a_core():
    assert VLLMServerConfig().num_cpu_threads == max(1, len(os.sched_getaffinity(0)) - 1)


@pytest.mark.parametrize(
    ("plugins", "expected"),
    [
        (None, None),  # vLLM loads all
        ("", "trl_r1zero_gloo"),
        ("lora", "lora,trl_r1zero_gloo"),
        ("trl_r1zero_gloo,lora", "lora,trl_r1zero_gloo"),
    ],
)
@pytest.mark.parametrize("transfer", ["gloo", "ipc"])
def test_the_plugin_is_loaded_beside_others(transfer, plugins, expected, on_cpu, monkeypatch):
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if plugins is not None:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
    environment = VLLMServer("m", VLLMServerConfig(weight_transfer=transfer)).environment()
    assert environment.get("VLLM_PLUGINS") == expected


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("gpu-7", "http://gpu-7:8000"),
    ],
)
def test_base_url(host, url):
    assert VLLMServer("m", VLLMServerConfig(host=host, port=8000)).base_url == url


# Errors before anything is started


def test_no_vllm(monkeypatch):
    def version(name: str) -> str:
        raise module.PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", version)
    with pytest.raises(VLLMServerError, match=r'-e "\.\[vllm\]"; on one without: make vllm'):
        VLLMServer("m").start()


def test_nccl_needs_the_build_for_gpus(on_cpu):
    server = VLLMServer("m", VLLMServerConfig(weight_transfer="nccl"))
    if on_cpu:
        with pytest.raises(VLLMServerError, match="set gloo or auto"):
            server.command()
    else:
        assert server.weight_transfer == "nccl"


def test_a_folder_that_is_not_there(on_cpu, tmp_path):
    with pytest.raises(VLLMServerError, match=r"there is no folder '.*gone' to serve"):
        VLLMServer(str(tmp_path / "gone")).start()


def test_a_port_that_is_taken(on_cpu):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(VLLMServerError, match=f"port {port}: Address already in use"):
            VLLMServer("m", VLLMServerConfig(port=port)).start()


@pytest.mark.skipif(sys.platform != "linux", reason="how Linux shares ports")
def test_a_reserved_port_is_for_the_server_alone():
    with module._reserved_port("127.0.0.1", None) as port:
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port))
        with socket.socket() as server:  # as vLLM binds
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", port))
            server.listen()


def test_listening_to_everybody_is_warned_of(on_cpu):
    config = VLLMServerConfig(host="0.0.0.0")
    with pytest.warns(UserWarning, match=r"can replace its weights \(/init_weight_transfer"):
        VLLMServer("m", config)._check_before_start()


# A real one


def test_answers_with_chosen_log_probs(vllm_server):
    assert vllm_server.is_alive()
    assert vllm_server.is_healthy()
    body = {
        "model": requests.get(f"{vllm_server.base_url}/v1/models").json()["data"][0]["id"],
        "prompt": [5, 6, 7],
        "max_tokens": 8,
        "min_tokens": 8,
        "seed": 1,
        "temperature": 0.5,
        "logprobs": 0,
        "return_token_ids": True,
    }
    answers = [requests.post(f"{vllm_server.base_url}/v1/completions", json=body) for _ in "ab"]
    first, second = (answer.json()["choices"][0] for answer in answers)
    assert len(first["token_ids"]) == 8
    assert first["token_ids"] == second["token_ids"]  # the same seed


def test_has_what_weight_updates_need(vllm_server):
    info = requests.get(f"{vllm_server.base_url}/server_info?config_format=json").json()
    backend = info["vllm_config"]["weight_transfer_config"]["backend"]
    assert backend == vllm_server.weight_transfer
    assert requests.get(f"{vllm_server.base_url}/get_world_size").json() == {"world_size": 1}


def test_many_seeded_prompts_at_once(vllm_server):
    """More prompt tokens than the scheduler takes in one step: none may be cut in two on a CPU."""
    body = {
        "model": str(vllm_server.model),
        "prompt": [[5 + row] * 150 for row in range(40)],  # 6,000 tokens
        "max_tokens": 2,
        "seed": 0,
    }
    answer = requests.post(f"{vllm_server.base_url}/v1/completions", json=body)
    assert len(answer.json()["choices"]) == 40
    assert vllm_server.is_healthy()


def test_starting_twice_is_starting_once(vllm_server):
    pid = vllm_server.pid
    vllm_server.start()
    assert vllm_server.pid == pid


def test_another_program_at_the_port_is_not_the_server(vllm_server, monkeypatch):
    """A server that does not listen yet is not ready because another one answers at its address."""
    assert vllm_server._has_port()
    with subprocess.Popen(["sleep", "60"]) as still_starting:
        monkeypatch.setattr(vllm_server, "_pid", still_starting.pid)
        assert vllm_server.is_healthy()
        assert not vllm_server._has_port()
        still_starting.kill()


@needs_vllm
def test_a_start_that_fails_shows_the_first_error(served_model_folder, tmp_path):
    config = VLLMServerConfig(max_model_len=100_000, cpu_kv_cache_gb=0.25)
    server = VLLMServer(str(served_model_folder), config, log_path=tmp_path / "logs" / "server.log")
    with pytest.raises(VLLMServerError) as caught:
        server.start()
    message = str(caught.value)
    assert "max_model_len (100000) is greater than the derived max_model_len" in message
    assert "What to do: lower max_model_len" in message
    assert f"Its log: {server.log_path}" in message
    assert not server.is_alive()
    assert server.pid is None
    server.stop()
    server.stop()
    assert server.log_path.read_text()


@needs_vllm
@pytest.mark.slow
def test_nothing_is_left_when_the_owner_is_killed(served_model_folder, tmp_path_factory):
    owner_code = """
        import sys, time
        from trl_r1zero.generation.vllm_server import VLLMServer, VLLMServerConfig

        config = VLLMServerConfig(dtype="float32", cpu_kv_cache_gb=0.25, gpu_memory_utilization=0.3)
        server = VLLMServer(sys.argv[1], config)
        server.start()
        print(server.pid, flush=True)
        time.sleep(600)
    """
    folder = tmp_path_factory.mktemp("own")
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(owner_code), str(served_model_folder)],
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(folder), "VLLM_RPC_BASE_PATH": str(folder)},
    ) as owner:
        try:
            pid = int(owner.stdout.readline())
            family = psutil.Process(owner.pid).children(recursive=True)
            assert pid in [process.pid for process in family]
            assert len(family) >= 4  # supervisor, server, engine, worker
        finally:
            owner.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert not [path for path in folder.rglob("*") if path.is_socket()]


def test_is_cpu_build(on_cpu):
    assert is_cpu_build() is on_cpu


def test_weight_transfer_config_is_json():
    if installed_vllm() is not None:
        (flag,) = [flag for flag in flags(VLLMServerConfig()) if "weight-transfer" in flag]
        assert json.loads(flag.partition("=")[2])["backend"] in ("gloo", "nccl")
