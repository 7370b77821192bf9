"""What a launch does: processes, and the devices that it shows or hides."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import REPOSITORY

from trl_r1zero.devices import MachineFacts, VisibleDevices
from trl_r1zero.doctor.launch import (
    Launch,
    check_gpu_ids,
    check_processes,
    read_launch,
    seen_by_trainers,
)

CONFIGS = REPOSITORY / "accelerate_configs"


def levels(findings):
    return {finding.check: finding.level for finding in findings}


@pytest.mark.parametrize(
    ("name", "sharding", "processes", "machines"),
    [
        ("cpu", "none", 1, 1),
        ("single_gpu", "none", 1, 1),
        ("multi_gpu", "none", 8, 1),
        ("zero2", "zero2", 8, 1),
        ("zero3", "zero3", 8, 1),
        ("fsdp2", "zero3", 8, 1),
        ("multi_node", "none", 16, 2),
    ],
)
def test_the_files_of_the_repository(name, sharding, processes, machines):
    launch = read_launch(str(CONFIGS / f"{name}.yaml"), None)
    assert (launch.sharding, launch.num_processes, launch.num_machines) == (
        sharding,
        processes,
        machines,
    )
    assert launch.processes_here == 8 or launch.num_processes == 1
    assert launch.use_cpu == (name == "cpu")


def test_num_processes_wins_over_the_file():
    assert read_launch(str(CONFIGS / "zero3.yaml"), 4).num_processes == 4


def test_without_a_file_one_process_starts():
    assert read_launch(None, None) == Launch()


@pytest.mark.parametrize(
    "content",
    [
        "- a list",
        "num_processes: 2",
        "a: [1",
        "distributed_type: MULTI_GPU\nnum_processes: two",
    ],
)
def test_a_file_that_is_not_accelerates_is_an_error(tmp_path: Path, content: str):
    file = tmp_path / "launch.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"--accelerate_config .*launch\.yaml"):
        read_launch(str(file), None)


def test_gpu_ids_hide_devices():
    launch = Launch(path="two_gpu.yaml", gpu_ids="0")
    machine = MachineFacts.assume("2x80GB")
    assert len(seen_by_trainers(machine, launch).devices) == 1
    (finding,) = check_gpu_ids(launch, machine, listed=None)
    assert (finding.check, finding.level) == ("gpu_ids", "warning")
    assert "remove gpu_ids from two_gpu.yaml" in finding.do


def test_gpu_ids_replace_what_the_user_made_visible():
    """Somebody else's GPU 0, where 4 and 5 were given."""
    launch = Launch(path="two_gpu.yaml", gpu_ids="0")
    (finding,) = check_gpu_ids(launch, MachineFacts.assume("2x80GB"), listed="4,5")
    assert finding.level == "problem"
    assert "gpu_ids (0) replaces CUDA_VISIBLE_DEVICES=4,5" in finding.found


def test_without_gpu_ids_all_is_well():
    machine = MachineFacts.assume("2x80GB")
    assert check_gpu_ids(Launch(), machine, "4,5") == []
    assert seen_by_trainers(machine, Launch()) is machine


def test_processes_that_cannot_share_the_batch():
    launch = Launch(num_processes=3, distributed_type="MULTI_GPU")
    findings = check_processes(launch, 256, "train_batch_size", samples_itself=False)
    assert levels(findings) == {"launch": "ok", "processes": "problem"}
    assert "3 processes cannot share train_batch_size 256 evenly" in findings[1].found
    even = Launch(num_processes=4, distributed_type="MULTI_GPU")
    assert levels(check_processes(even, 256, "train_batch_size", False)) == {"launch": "ok"}


def test_several_processes_without_a_way_to_run_them():
    findings = check_processes(Launch(num_processes=2), None, "", False)
    assert levels(findings)["processes"] == "problem"


def test_transformers_cannot_sample_with_fsdp():
    launch = Launch(num_processes=2, distributed_type="FSDP")
    assert levels(check_processes(launch, 256, "", samples_itself=True))["sampling"] == "problem"
    assert "sampling" not in levels(check_processes(launch, 256, "", samples_itself=False))


def test_uuids_and_devices_that_are_not_there_in_gpu_ids():
    names = ("GPU-8932f937-aaaa", "GPU-1234f937-bbbb")
    machine = replace(MachineFacts.assume("2x80GB"), visible=VisibleDevices(names, ",".join(names)))
    launch = Launch(path="two_gpu.yaml", gpu_ids=names[1])
    assert seen_by_trainers(machine, launch).visible.names == (names[1],)
    (finding,) = check_gpu_ids(
        Launch(path="two_gpu.yaml", gpu_ids="6,7"), MachineFacts.assume("2x80GB"), listed=None
    )
    assert finding.level == "problem"
