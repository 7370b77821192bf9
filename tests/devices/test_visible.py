"""CUDA_VISIBLE_DEVICES as CUDA reads it, and devices that count within it."""

import pytest

from trl_r1zero.devices.visible import VisibleDevices, parse_devices, visible_devices


@pytest.mark.parametrize(
    ("variable", "count", "names"),
    [
        (None, 0, ()),
        (None, 3, ("0", "1", "2")),
        ("", 0, ()),
        ("-1", 0, ()),
        ("4,5", 2, ("4", "5")),
        ("4, 5", 2, ("4", "5")),
        ("5,4", 2, ("5", "4")),
        ("0,1,-1,2", 2, ("0", "1")),  # what is behind an entry that is none does not count
        ("0,1,9", 2, ("0", "1")),  # a machine of two
        ("0,0", 0, ()),  # CUDA takes a device that is named twice for an error
        ("GPU-aa,GPU-bb", 2, ("GPU-aa", "GPU-bb")),
        ("MIG-aa", 1, ("MIG-aa",)),
    ],
)
def test_names(variable, count, names):
    environment = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    visible = visible_devices(environment, count)
    assert visible.names == names
    # Whoever is given all of them by name sees the same ones.
    assert visible.variable_for(range(len(visible))) == ",".join(names)


def test_devices_by_number_and_by_name():
    visible = VisibleDevices(("GPU-aa", "GPU-bb", "GPU-cc"))
    assert parse_devices("2,0", visible) == [2, 0]
    assert parse_devices(" 1 , GPU-cc ", visible) == [1, 2]
    assert visible.variable_for([2, 0]) == "GPU-cc,GPU-aa"


def test_a_physical_number_is_not_meant():
    """Number 5 of this machine is this run's number 1."""
    visible = visible_devices({"CUDA_VISIBLE_DEVICES": "4,5"}, 2)
    assert parse_devices("1", visible) == [1]
    with pytest.raises(ValueError, match=r"devices is '5', .* 2 GPUs .*'4,5'.*counted from 0"):
        parse_devices("5", visible)


def test_the_same_device_by_number_and_name_is_twice():
    with pytest.raises(ValueError, match="names a device twice"):
        parse_devices("0,GPU-aa", VisibleDevices(("GPU-aa", "GPU-bb")))


@pytest.mark.parametrize(
    ("visible", "words"),
    [
        (visible_devices({}, 0), "this run sees no GPU (CUDA_VISIBLE_DEVICES is not set)"),
        (
            visible_devices({"CUDA_VISIBLE_DEVICES": "7,-1"}, 1),
            "this run sees 1 GPU (CUDA_VISIBLE_DEVICES is '7,-1')",
        ),
    ],
)
def test_in_words(visible, words):
    assert visible.in_words() == words
