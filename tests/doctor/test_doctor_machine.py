"""Devices, drivers and servers: each situation of the audit of the GPU path that can be seen."""

import dataclasses

import pytest
from doctor_runs import levels, make_run

from trl_r1zero.devices import DeviceFacts, MachineFacts, VisibleDevices
from trl_r1zero.doctor.launch import Launch
from trl_r1zero.doctor.machine import (
    check_machine,
    check_network,
    check_placement,
    check_trainers,
    place_server,
)

NO_GPU = MachineFacts((), VisibleDevices(()), torch_cuda="13.0")
OWN_SERVER = ("--use_vllm=true", "--vllm_server={}")


def on_machine(machine, *settings):
    return dataclasses.replace(make_run("80GB", *settings), machine=machine)


def placed(run, trainer_bytes=2**30):
    """The server of a run, and the findings about its place."""
    server = place_server(run, trainer_bytes)
    return server, list(check_placement(run, server))


def test_a_driver_that_torch_cannot_use_is_a_problem():
    hidden = dataclasses.replace(NO_GPU, has_nvidia_device=True, driver="535.104.05")
    finding = check_machine(on_machine(hidden))
    assert (finding.check, finding.level) == ("driver", "problem")
    assert "the NVIDIA driver is 535.104.05; CUDA 13.0 wants 580 or newer" in finding.found


def test_a_variable_that_hides_all_devices_is_a_problem():
    none_visible = VisibleDevices((), "")
    hidden = dataclasses.replace(NO_GPU, has_nvidia_device=True, visible=none_visible)
    finding = check_machine(on_machine(hidden))
    assert finding.level == "problem"
    assert "CUDA_VISIBLE_DEVICES is '', which hides them all" in finding.found


def test_torch_for_cpus_beside_a_gpu_is_a_warning():
    machine = dataclasses.replace(NO_GPU, has_nvidia_device=True, torch_cuda=None)
    finding = check_machine(on_machine(machine))
    assert (finding.level, finding.needed) == ("warning", "torch for CUDA")


def test_a_cpu_that_is_meant_is_fine():
    hidden = dataclasses.replace(NO_GPU, has_nvidia_device=True)
    assert check_machine(on_machine(hidden, "--use_cpu=true")).level == "ok"
    assert check_machine(on_machine(NO_GPU)).level == "warning"


def test_devices_are_named_with_driver_and_variable():
    device = DeviceFacts(80 * 2**30, "NVIDIA H100")
    machine = MachineFacts((device,), VisibleDevices(("5",)), "13.0", "580.65.06", True)
    finding = check_machine(on_machine(machine))
    assert "1 x NVIDIA H100 (80.0 GiB); driver 580.65.06, torch for CUDA 13.0" in finding.found


def test_each_process_is_told_its_device_by_the_machines_own_number():
    run = make_run("2x80GB", launch=Launch(num_processes=2, distributed_type="MULTI_GPU"))
    seen = dataclasses.replace(run.machine, visible=VisibleDevices(("4", "5")))
    (finding,) = check_trainers(dataclasses.replace(run, machine=seen))
    assert finding.found == (
        "process 0 on GPU 0 (4 on this machine); process 1 on GPU 1 (5 on this machine)"
    )


def test_more_processes_than_devices_is_a_problem():
    run = make_run("2x80GB", launch=Launch(num_processes=8, distributed_type="MULTI_GPU"))
    assert levels(check_trainers(run)) == {"trainers": "problem"}


def test_one_process_beside_two_devices_uses_one():
    assert levels(check_trainers(make_run("2x80GB")))["single_process"] == "ok"


# Servers


def test_one_gpu_is_shared_without_nccl():
    server, findings = placed(make_run("80GB", *OWN_SERVER))
    assert server.placement.weight_transfer == "ipc"
    assert server.config.sleep_level == 2
    assert levels(findings) == {"placement": "ok", "one_gpu": "ok"}


def test_nccl_on_one_device_is_a_problem():
    run = make_run("80GB", "--use_vllm=true", "--vllm_server={weight_transfer: nccl}")
    with pytest.raises(ValueError, match="NCCL refuses two processes on one GPU"):
        place_server(run, trainer_bytes=2**30)


def test_two_gpus_are_one_each():
    server, findings = placed(make_run("2x80GB", *OWN_SERVER))
    assert (server.placement.server, server.placement.weight_transfer) == ((1,), "nccl")
    assert levels(findings) == {"placement": "ok"}


def test_the_launchers_gpu_ids_hide_the_servers_device():
    run = make_run(
        "2x80GB",
        "--use_vllm=true",
        "--vllm_server={devices: '1'}",
        launch=Launch(path="two_gpu.yaml", gpu_ids="0"),
    )
    with pytest.raises(ValueError, match="there is no device '1'"):
        place_server(run, trainer_bytes=2**30)


def test_a_server_has_no_room_beside_float32_training_on_24_gb():
    run = make_run("24GB", *OWN_SERVER)
    with pytest.raises(ValueError, match=r"no room for a vLLM server .* dtype: bfloat16"):
        place_server(run, trainer_bytes=22 * 2**30)


def test_a_server_that_stays_awake_on_a_shared_device_is_a_warning():
    run = make_run("80GB", "--use_vllm=true", "--vllm_server={sleep_level: 0}")
    _, findings = placed(run)
    assert levels(findings)["sleep"] == "warning"


def test_vllm_for_cpus_beside_gpus_is_a_warning():
    run = make_run("80GB", *OWN_SERVER)
    here = dataclasses.replace(run.machine, assumed=False)
    run = dataclasses.replace(run, machine=here, vllm="0.31.0+cpu")
    _, findings = placed(run)
    assert levels(findings)["cpu_build"] == "warning"


def test_a_server_of_its_own_on_several_machines_is_a_problem():
    launch = Launch(num_processes=2, num_machines=2, distributed_type="MULTI_GPU")
    _, findings = placed(make_run("2x80GB", *OWN_SERVER, launch=launch))
    assert levels(findings)["machines"] == "problem"


def test_proxies_are_named():
    run = make_run("80GB", *OWN_SERVER, environment={"HTTP_PROXY": "http://proxy:3128"})
    (finding,) = check_network(run)
    assert finding.found == "HTTP_PROXY is set; requests to the vLLM server go past it"
    assert list(check_network(make_run("80GB"))) == []


def test_a_server_on_another_machine_is_a_warning():
    run = make_run("80GB", "--use_vllm=true", "--vllm_server_base_url=http://10.0.0.2:8000")
    assert levels(check_network(run)) == {"remote": "warning", "other": "ok"}
