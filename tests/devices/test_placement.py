"""Who is on which device, how weights travel, and how much memory the server takes."""

from itertools import product

import pytest

from trl_r1zero.devices.facts import GIB
from trl_r1zero.devices.placement import memory_share, place
from trl_r1zero.devices.visible import VisibleDevices


def gpus(count: int) -> VisibleDevices:
    return VisibleDevices(tuple(map(str, range(count))))


def placed(count: int, trainers: int = 1, **settings):
    where = {"trainer_on_cuda": True, "server_on_cuda": True}
    return place(gpus(count), num_trainers=trainers, **{**where, **settings})


@pytest.mark.parametrize(
    ("count", "trainers", "settings", "server", "transfer", "shared"),
    [
        # One GPU is for both, whoever asks for it.
        (1, 1, {}, (0,), "ipc", True),
        (1, 1, {"server_devices": "0"}, (0,), "ipc", True),
        (1, 1, {"ipc_works": False}, (0,), "gloo", True),
        (2, 1, {"server_devices": "0"}, (0,), "ipc", True),
        # More GPUs: the server is behind the trainers.
        (2, 1, {}, (1,), "nccl", False),
        (8, 1, {}, (1,), "nccl", False),
        (8, 6, {"num_server_devices": 2}, (6, 7), "nccl", False),
        (8, 4, {"server_devices": "7,6", "num_server_devices": 2}, (7, 6), "nccl", False),
        # All GPUs train: the server is on those of the first trainers.
        (2, 2, {}, (0,), "ipc", True),
        (8, 8, {"num_server_devices": 4}, (0, 1, 2, 3), "gloo", True),
        # The server is on another trainer's: the first one, who sends, is elsewhere.
        (2, 2, {"server_devices": "1"}, (1,), "nccl", True),
        # NCCL would have two processes on GPU 0.
        (2, 1, {"num_server_devices": 2}, (0, 1), "gloo", True),
        # A trainer on the CPU sends through the host.
        (1, 1, {"trainer_on_cuda": False}, (0,), "gloo", False),
        (2, 1, {"trainer_on_cuda": False, "server_devices": "1"}, (1,), "gloo", False),
        # A server on the CPU receives through the host.
        (1, 1, {"server_on_cuda": False}, (), "gloo", False),
        (0, 1, {"server_on_cuda": False, "trainer_on_cuda": False}, (), "gloo", True),
    ],
)
def test_who_is_where(count, trainers, settings, server, transfer, shared):
    placement = placed(count, trainers, **settings)
    on_cuda = settings.get("trainer_on_cuda", True)
    assert placement.trainers == (tuple(range(trainers)) if on_cuda else ())
    assert (placement.server, placement.weight_transfer) == (server, transfer)
    assert placement.shared == shared
    # On a CPU nothing has to be given up: the memory of the host is not as short.
    assert placement.sleep_level == (2 if shared and server else 0)


@pytest.mark.parametrize(("count", "trainers", "wants"), list(product(range(1, 5), repeat=3)))
def test_nccl_never_meets_itself_on_one_gpu(count, trainers, wants):
    """Everything that fits is placed on devices that are there; NCCL only between devices."""
    if trainers > count or wants > count:
        with pytest.raises(ValueError, match="GPU"):
            placed(count, trainers, num_server_devices=wants)
        return
    placement = placed(count, trainers, num_server_devices=wants)
    assert len(set(placement.server)) == wants
    assert set(placement.server) <= set(range(count))
    assert placement.shared == bool(set(placement.server) & set(placement.trainers))
    assert (placement.weight_transfer == "nccl") == (0 not in placement.server)
    assert (placement.weight_transfer == "ipc") == (placement.server == (0,))


@pytest.mark.parametrize(
    ("count", "trainers", "settings", "message"),
    [
        (0, 1, {}, "there are 1 of them, but this run sees no GPU"),
        (1, 2, {}, "there are 2 of them, but this run sees 1 GPU"),
        (0, 1, {"trainer_on_cuda": False}, "vLLM for GPUs is installed, but this run sees no GPU"),
        (2, 1, {"num_server_devices": 4}, "the server wants 4 .*, but this run sees 2 GPUs"),
        (4, 1, {"server_devices": "2,3"}, "is '2,3', which are 2, but the server wants 1"),
        (4, 1, {"server_devices": "2", "num_server_devices": 2}, "which are 1, but .* wants 2"),
        (1, 1, {"server_devices": "1"}, "there is no device '1'.*gpu_ids, remove it"),
        (1, 1, {"server_devices": "0", "server_on_cuda": False}, "build for CPUs is installed"),
    ],
)
def test_impossible_placements(count, trainers, settings, message):
    with pytest.raises(ValueError, match=message):
        placed(count, trainers, **settings)


def test_in_words():
    assert placed(1).in_words() == (
        "trainer on GPU 0, vLLM server on the same: weights by ipc (both are on one GPU); the "
        "server sleeps while the trainer trains"
    )
    assert placed(3, 2).in_words() == (
        "trainers on GPUs 0, 1, vLLM server on GPU 2: weights by nccl (from one GPU to another); "
        "the server stays awake"
    )
    on_cpu = placed(0, server_on_cuda=False, trainer_on_cuda=False)
    assert on_cpu.in_words().startswith("trainer on the CPU, vLLM server on the same: weights by")


# The memory share


def test_a_device_of_its_own_is_the_servers():
    assert memory_share(placed(2), 80 * GIB, 60 * GIB, 0) == 0.9


@pytest.mark.parametrize(
    ("total", "trainer", "share"),
    [
        (79.2, 17.3, 0.74),  # Qwen2.5-Math-1.5B with AdamW, float32: 3 x 5.75 GiB
        (79.2, 8.6, 0.85),  # bfloat16
        (23.6, 8.6, 0.5),
        (139.0, 1.0, 0.9),  # never more than of a device of its own
    ],
)
def test_a_server_that_sleeps_has_what_the_trainer_does_not_keep(total, trainer, share):
    placement = placed(1)
    assert memory_share(placement, int(total * GIB), int(trainer * GIB), 2) == share
    together = share * total + trainer + 3
    assert together <= total


def test_a_server_that_stays_awake_leaves_room_to_train():
    assert memory_share(placed(1), 80 * GIB, 17 * GIB, 0) == 0.4


def test_no_room_for_a_server():
    with pytest.raises(ValueError, match=r"23\.6 GiB.* take 20\.6: there is no room .*bfloat16"):
        memory_share(placed(1), int(23.6 * GIB), int(20.6 * GIB), 2)
