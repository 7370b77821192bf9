"""Whether two processes can share memory of a GPU."""

import pytest

from trl_r1zero.devices.ipc import PlatformFacts, ipc_obstacle, ipc_works, platform_here


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (PlatformFacts(), None),
        (PlatformFacts(release="6.8.0-57-generic", allocator="max_split_size_mb:512"), None),
        (PlatformFacts(allocator="expandable_segments:False"), None),
        (PlatformFacts(allocator="max_split_size_mb:64, expandable_segments: True"), "PYTORCH"),
        (PlatformFacts(release="5.15.153.1-microsoft-standard-WSL2"), "WSL"),
        (PlatformFacts(system="Windows"), "Windows"),
        (PlatformFacts(one_machine=False), "different machines"),
    ],
)
def test_what_speaks_against_sharing(facts, expected):
    obstacle = ipc_obstacle(facts)
    assert obstacle is None if expected is None else expected in obstacle
    assert ipc_works(facts) is (expected is None)


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_allocators_settings_have_two_names(name):
    assert platform_here({}).allocator == ""
    assert platform_here({name: "expandable_segments:True"}).allocator.endswith("True")
