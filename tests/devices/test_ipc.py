"""Whether two processes can share memory of a GPU."""

import platform

import pytest

from trl_r1zero.devices.ipc import ipc_works


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
def test_what_prevents_sharing(name, system, release, allocator, works, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "release", lambda: release)
    assert ipc_works({name: allocator}) is works
