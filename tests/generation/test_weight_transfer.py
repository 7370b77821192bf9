"""Weights over gloo: the buckets, and two ranks that really exchange tensors."""

import threading

import pytest
import torch

from trl_r1zero.generation.weight_transfer import (
    TensorInfo,
    TrainerRendezvous,
    cut_into_buckets,
    join_as_worker,
    pack,
    receive_weights,
    send_weights,
    unpack,
)


def nothing() -> None:
    pass


def test_buckets_hold_what_fits_and_a_large_tensor_alone():
    sizes = {"a": 40, "b": 50, "c": 20, "large": 300, "d": 100}  # bytes
    infos = [TensorInfo(name, "uint8", (size,)) for name, size in sizes.items()]
    buckets = cut_into_buckets(infos, bucket_bytes=100)
    assert [[info.name for info in bucket] for bucket in buckets] == [
        ["a", "b"],
        ["c"],
        ["large"],
        ["d"],
    ]
    assert cut_into_buckets([]) == []


def test_a_bucket_of_mixed_dtypes_is_unpacked_as_it_was():
    tensors = {
        "odd": torch.tensor([1, 2, 3], dtype=torch.uint8),  # what follows is not aligned
        "half": torch.tensor([[0.5, -1.0]], dtype=torch.bfloat16),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "scalar": torch.tensor(7.0, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
    }
    infos = [TensorInfo.of(name, tensor) for name, tensor in tensors.items()]
    assert [info.num_bytes for info in infos] == [3, 4, 24, 8, 0]
    unpacked = dict(unpack(pack(tensors.values()), infos))
    for name, tensor in tensors.items():
        assert unpacked[name].dtype == tensor.dtype
        assert torch.equal(unpacked[name], tensor)


def exchange(send, receive):
    """Run both halves on a group of two ranks; what `receive` returned."""
    meeting = TrainerRendezvous("127.0.0.1", num_workers=1, port=None, timeout_seconds=20)
    results = []

    def worker() -> None:
        info = meeting.init_info
        group = join_as_worker(
            info["master_address"],
            info["master_port"],
            info["rank_offset"],
            info["world_size"],
            timeout_seconds=20,
        )
        results.append(receive(group))

    thread = threading.Thread(target=worker)
    thread.start()
    try:
        send(meeting.join(nothing))
    finally:
        thread.join()
    return results[0]


def test_a_worker_receives_what_the_trainer_sends_in_order():
    weights = {"first": torch.randn(3, 5), "second": torch.randn(7).bfloat16()}
    infos = [TensorInfo.of(name, tensor) for name, tensor in weights.items()]
    received = exchange(
        lambda group: send_weights(group, infos, iter(weights.items()), nothing),
        lambda group: [pair for bucket in receive_weights(group, infos) for pair in bucket],
    )
    assert [name for name, _ in received] == list(weights)
    for name, tensor in received:
        assert torch.equal(tensor, weights[name])


def test_an_error_elsewhere_ends_a_broadcast_that_nobody_receives():
    finished = threading.Event()

    def fail() -> None:
        raise ValueError("the request failed")

    def send(group) -> None:
        try:
            group.broadcast(torch.zeros(10_000_000, dtype=torch.uint8), fail)
        finally:
            finished.set()

    with pytest.raises(ValueError, match="the request failed"):
        exchange(send, lambda group: finished.wait(20))


def test_workers_that_do_not_come_are_a_timeout():
    meeting = TrainerRendezvous("localhost", num_workers=1, port=None, timeout_seconds=0.2)
    with pytest.raises(TimeoutError, match=r"did not join .* within 0\.2 s"):
        meeting.join(nothing)
