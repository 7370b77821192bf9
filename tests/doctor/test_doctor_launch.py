"""What a launch does: processes, and the devices that it shows or hides."""

from dataclasses import replace
from pathlib import Path

import pytest
from doctor_runs import levels, make_run
from tiny_models import REPOSITORY

from trl_r1zero.devices import VisibleDevices
from trl_r1zero.doctor.launch import Launch, read_launch
from trl_r1zero.doctor.machine import check_gpu_ids, check_processes

CONFIGS = REPOSITORY / "accelerate_configs"


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
    run = make_run("2x80GB", launch=Launch(path="two_gpu.yaml", gpu_ids="0"))
    assert len(run.seen.devices) == 1
    (finding,) = check_gpu_ids(run, listed=None)
    assert (finding.check, finding.level) == ("gpu_ids", "warning")
    assert "remove gpu_ids from two_gpu.yaml" in finding.do


def test_gpu_ids_replace_what_the_user_made_visible():
    """Somebody else's GPU 0, where 4 and 5 were given."""
    run = make_run("2x80GB", launch=Launch(path="two_gpu.yaml", gpu_ids="0"))
    (finding,) = check_gpu_ids(run, listed="4,5")
    assert finding.level == "problem"
    assert "gpu_ids (0) replaces CUDA_VISIBLE_DEVICES=4,5" in finding.found


def test_without_gpu_ids_all_is_well():
    run = make_run("2x80GB")
    assert list(check_gpu_ids(run, "4,5")) == []
    assert run.seen is run.machine


def test_processes_that_cannot_share_the_batch():
    launch = Launch(num_processes=3, distributed_type="MULTI_GPU")
    findings = list(check_processes(make_run("8x80GB", launch=launch)))
    assert levels(findings) == {"launch": "ok", "processes": "problem"}
    assert "3 processes cannot share train_batch_size 256 evenly" in findings[1].found
    even = make_run("8x80GB", launch=Launch(num_processes=4, distributed_type="MULTI_GPU"))
    assert levels(check_processes(even)) == {"launch": "ok"}


def test_several_processes_without_a_way_to_run_them():
    (_, finding) = check_processes(make_run("8x80GB", launch=Launch(num_processes=2)))
    assert (finding.check, finding.level) == ("processes", "problem")
    assert "accelerate would start one" in finding.found


def test_transformers_cannot_sample_with_fsdp():
    launch = Launch(num_processes=2, distributed_type="FSDP")
    alone = make_run("2x80GB", launch=launch)
    assert levels(check_processes(alone))["sampling"] == "problem"
    served = make_run("2x80GB", "--use_vllm=true", "--vllm_server={}", launch=launch)
    assert "sampling" not in levels(check_processes(served))


def test_uuids_and_devices_that_are_not_there_in_gpu_ids():
    names = ("GPU-8932f937-aaaa", "GPU-1234f937-bbbb")
    run = make_run("2x80GB", launch=Launch(path="two_gpu.yaml", gpu_ids=names[1]))
    by_uuid = replace(run.machine, visible=VisibleDevices(names, ",".join(names)))
    assert replace(run, machine=by_uuid).seen.visible.names == (names[1],)
    elsewhere = make_run("2x80GB", launch=Launch(path="two_gpu.yaml", gpu_ids="6,7"))
    (finding,) = check_gpu_ids(elsewhere, listed=None)
    assert finding.level == "problem"
