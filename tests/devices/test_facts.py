"""What a machine is: assumed from text, or asked of torch and the driver."""

import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trl_r1zero.devices import facts as module
from trl_r1zero.devices.facts import MachineFacts, ipc_works, machine_facts


@pytest.mark.parametrize(
    ("text", "number", "total_bytes"),
    [
        ("2x80GB", 2, 80 * 10**9),
        ("24GB", 1, 24 * 10**9),
        ("8x80gb", 8, 80 * 10**9),
        (" 1 x 24 GB ", 1, 24 * 10**9),
        ("1x79.2GiB", 1, int(79.2 * 2**30)),
    ],
)
def test_a_described_machine(text, number, total_bytes):
    facts = MachineFacts.assume(text)
    assert [device.total_bytes for device in facts.devices] == [total_bytes] * number
    assert facts.visible.names == tuple(map(str, range(number)))
    assert facts.assumed
    assert facts.total_bytes(tuple(range(number))) == total_bytes


def test_a_machine_without_gpus():
    facts = MachineFacts.assume("cpu")
    assert (facts.devices, len(facts.visible), facts.torch_cuda) == ((), 0, None)
    assert facts.in_words() == "no GPU"


@pytest.mark.parametrize(
    "text", ["", "80", "2x", "0x80GB", "2x0GB", "80GB x 2", "-1x80GB", "2x80TB", "H100"]
)
def test_text_that_describes_no_machine(text):
    with pytest.raises(ValueError, match="a machine is cpu, 24GB or 2x80GB"):
        MachineFacts.assume(text)


def test_in_words():
    assert MachineFacts.assume("2x80GiB").in_words() == "2 x GPU (80.0 GiB)"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC",
            "535.183.01",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
            "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)",
            "580.65.06",
        ),
        ("580.95\n580.95\n", "580.95"),
        ("", None),
        ("NVIDIA-SMI has failed because it couldn't communicate with the driver", None),
    ],
)
def test_the_drivers_version(text, version, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: text)
    assert module._driver_version() == version


def test_what_torch_says(monkeypatch):
    """As on a machine of eight GPUs of which two are visible."""
    properties = SimpleNamespace(name="NVIDIA H100", total_memory=85 * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(module, "_driver_version", lambda: "580.65.06")
    facts = machine_facts({"CUDA_VISIBLE_DEVICES": "4,5"})
    assert facts.visible.names == ("4", "5")
    assert (facts.torch_cuda, facts.driver) == ("13.0", "580.65.06")
    assert facts.has_nvidia_device
    assert facts.in_words() == "2 x NVIDIA H100 (79.2 GiB)"


def test_what_nvml_counts_and_torch_cannot_use_does_not_count(monkeypatch):
    """With a driver that is too old, device_count() still sees the devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(module, "_has_nvidia_device", lambda: True)
    facts = machine_facts({})
    assert (facts.devices, len(facts.visible)) == ((), 0)
    assert facts.has_nvidia_device


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-8932f937)'", True),
        ("echo 'No devices were found'", False),
        ("echo 'GPU 0: gone'; exit 9", False),
        ("sleep 60", False),
    ],
)
def test_nvidia_smi_where_the_kernel_says_nothing(script, found, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(module, "_SMI_SECONDS", 0.5)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    assert module._has_nvidia_device() == found


def test_import_without_torch():
    code = "import trl_r1zero.devices, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("system", "release", "allocator", "works"),
    [
        ("Linux", "", "", True),
        ("Linux", "6.8.0-57-generic", "max_split_size_mb:512", True),
        ("Linux", "", "expandable_segments:False", True),
        ("Linux", "", "max_split_size_mb:64, expandable_segments: True", False),
        ("Linux", "5.15.153.1-microsoft-standard-WSL2", "", False),
        ("Windows", "", "", False),
    ],
)
@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_whether_two_processes_can_share_memory(
    name, system, release, allocator, works, monkeypatch
):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "release", lambda: release)
    assert ipc_works({name: allocator}) is works
