"""Memory that two processes share: handles as JSON, pieces, and what is refused."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from trl_r1zero.generation import shared_buffer
from trl_r1zero.generation.shared_buffer import (
    BufferReader,
    CPUHandle,
    CUDAHandle,
    SharedBuffer,
    SharedMemoryError,
    parse_handle,
)
from trl_r1zero.generation.weight_transfer import TensorInfo, cut_into_buckets

CPU = torch.device("cpu")
PROOF = bytes(range(16))
CUDA_HANDLE = CUDAHandle(
    num_bytes=1024,
    proof=PROOF,
    memory_handle=bytes([0, 255] * 33),
    storage_bytes=1024,
    offset_bytes=512,
    ref_counter_handle=b"/torch_17_423_0",
    ref_counter_offset=3,
    event_handle=bytes(64),
    event_sync_required=True,
)
CPU_HANDLE = CPUHandle(num_bytes=1024, proof=PROOF, pid=17, fd=4)


@pytest.mark.parametrize("handle", [CPU_HANDLE, CUDA_HANDLE], ids=["cpu", "cuda"])
def test_a_handle_comes_back_from_json_as_it_was(handle):
    assert parse_handle(json.loads(json.dumps(handle.as_json()))) == handle


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "pickle"}, "kind is one of cpu, cuda"),
        ({"memory_handle": "not base64!"}, "memory_handle of a buffer must be a text in base64"),
        ({"memory_handle": 5}, "memory_handle of a buffer must be a text in base64, got 5"),
        ({"num_bytes": -1}, "num_bytes of a buffer must be a number from 0, got -1"),
        ({"num_bytes": True}, "num_bytes of a buffer must be a number from 0, got True"),
        ({"num_bytes": 4}, "at least 16 bytes"),
        ({"event_sync_required": 1}, "must be true or false, got 1"),
        ({"__reduce__": "os.system"}, "a buffer of kind cuda has .*ref_counter_offset"),
    ],
)
def test_what_is_no_handle_is_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        parse_handle({**CUDA_HANDLE.as_json(), **change})
    with pytest.raises(ValueError, match="must be an object"):
        parse_handle("gASVHgAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOU")


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "odd": torch.arange(7, dtype=torch.uint8),  # what follows is not aligned
        "small": torch.randn(5, 3, generator=generator),
        "transposed": torch.randn(4, 6, generator=generator).T,
        "large": torch.randn(40, 11, generator=generator).bfloat16(),  # 880 bytes
        "empty": torch.zeros(0, 4),
        "last": torch.tensor(7.0, dtype=torch.float64),
    }


@pytest.mark.parametrize("buffer_bytes", [16, 100, 104, 4096])
def test_weights_arrive_in_pieces_or_whole(buffer_bytes):
    tensors = weights()
    infos = [TensorInfo.of(name, tensor) for name, tensor in tensors.items()]
    buffer = SharedBuffer(CPU, buffer_bytes)
    reader = BufferReader(parse_handle(buffer.handle().as_json()), CPU)
    received, requests = [], 0
    for bucket in cut_into_buckets(infos, buffer_bytes):
        for start, length in buffer.fill([tensors[info.name] for info in bucket]):
            assert length <= buffer_bytes
            received += reader.take(bucket, start, length)
            requests += 1
    assert [name for name, _ in received] == list(tensors)
    for name, tensor in received:  # though the buffer has other bytes by now
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])
    assert requests == 1 if buffer_bytes == 4096 else requests > 6


def test_a_reader_refuses_pieces_that_do_not_fit():
    buffer = SharedBuffer(CPU, 100)
    reader = BufferReader(buffer.handle(), CPU)
    bucket = [TensorInfo("large", "uint8", (250,))]
    for start, length in [(0, 101), (200, 100), (-1, 50), (0, -1)]:
        with pytest.raises(ValueError, match="is none of a bucket of 250 and a buffer of 100"):
            reader.take(bucket, start, length)
    with pytest.raises(ValueError, match="the first piece of this bucket has not been here"):
        reader.take(bucket, 100, 100)
    # An update that broke off leaves nothing behind that the next one could take for its own.
    assert reader.take([TensorInfo("other", "uint8", (150,))], 0, 100) == []
    with pytest.raises(ValueError, match="has not been here"):
        reader.take(bucket, 100, 100)


def open_and_read(handle: dict, connection) -> None:
    reader = BufferReader(parse_handle(handle), CPU)
    connection.send("opened")
    num_bytes = connection.recv()
    ((_, tensor),) = reader.take([TensorInfo("t", "uint8", (num_bytes,))], 0, num_bytes)
    connection.send(bytes(tensor.tolist()))


def test_another_process_reads_it_and_nothing_is_left_of_it():
    files = set(Path("/dev/shm").iterdir())
    buffer = SharedBuffer(CPU, 64)
    handle = buffer.handle().as_json()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=open_and_read, args=(handle, there))
    process.start()
    there.close()  # should the process end, `recv` is an error
    assert here.recv() == "opened"
    for _, length in buffer.fill([torch.arange(40, dtype=torch.uint8)]):
        here.send(length)
        assert here.recv() == bytes(range(40))
    process.join()
    assert not any("r1zero" in file.name for file in set(Path("/dev/shm").iterdir()) - files)
    buffer.close()
    with pytest.raises(SharedMemoryError, match="cannot be opened"):
        BufferReader(parse_handle(handle), CPU)


def test_a_reader_outlives_the_process_that_is_killed():
    program = (
        "import json, torch, time\n"
        "from trl_r1zero.generation.shared_buffer import SharedBuffer\n"
        "buffer = SharedBuffer(torch.device('cpu'), 64)\n"
        "print(json.dumps(buffer.handle().as_json()), flush=True)\n"
        "time.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    handle = parse_handle(json.loads(owner.stdout.readline()))
    reader = BufferReader(handle, CPU)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    ((_, tensor),) = reader.take([TensorInfo("proof", "uint8", (16,))], 0, 16)
    assert bytes(tensor.tolist()) == handle.proof


def test_no_other_file_can_be_opened(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(PROOF * 64)
    with secret.open("r+b") as file:
        handle = CPUHandle(1024, PROOF, os.getpid(), file.fileno())
        with pytest.raises(SharedMemoryError, match="is no buffer for weights"):
            BufferReader(handle, CPU)
    shrinking = os.memfd_create("trl_r1zero_weights")
    os.write(shrinking, PROOF * 64)
    with pytest.raises(SharedMemoryError, match="may shrink while it is read"):
        BufferReader(CPUHandle(1024, PROOF, os.getpid(), shrinking), CPU)
    os.close(shrinking)


def test_memory_that_is_not_the_trainers_is_refused():
    buffer = SharedBuffer(CPU, 64)
    handle = buffer.handle()
    other = CPUHandle(handle.num_bytes, PROOF, handle.pid, handle.fd)
    with pytest.raises(SharedMemoryError, match="is not the trainer's"):
        BufferReader(other, CPU)
    longer = CPUHandle(2**20, handle.proof, handle.pid, handle.fd)
    with pytest.raises(SharedMemoryError, match="bytes can be mapped"):
        BufferReader(longer, CPU)


class FakeStorage:
    """torch.UntypedStorage where there is no GPU: the memory is this process's own."""

    opened: ClassVar[list[tuple]] = []
    memory = torch.cat([torch.tensor(list(PROOF), dtype=torch.uint8), torch.zeros(1008).byte()])

    @classmethod
    def _new_shared_cuda(cls, *args):
        cls.opened.append(args)
        return cls.memory.untyped_storage()


@pytest.fixture
def fake_cuda(monkeypatch):
    FakeStorage.opened.clear()
    monkeypatch.setattr(shared_buffer.torch, "UntypedStorage", FakeStorage)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    empty = torch.empty

    def on_the_cpu(*args, **kwargs) -> torch.Tensor:
        return empty(*args, **kwargs | {"device": CPU})

    monkeypatch.setattr(torch, "empty", on_the_cpu)


def test_cudas_memory_is_opened_on_the_workers_own_device(fake_cuda):
    reader = BufferReader(CUDA_HANDLE, torch.device("cuda", 3))
    h = CUDA_HANDLE
    assert FakeStorage.opened == [
        (3, h.memory_handle, 1024, 512, h.ref_counter_handle, 3, h.event_handle, True)
    ]
    assert len(reader._data) == 1024


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ref_counter_handle": b"/somebody_elses"}, "is not torch's"),
        ({"ref_counter_offset": 10**6}, "is not torch's"),
        ({"num_bytes": 2048}, "larger than its memory"),
        ({"proof": bytes(16)}, "is not the trainer's"),
    ],
)
def test_a_cuda_handle_that_torch_would_take_badly_is_not_given_to_it(fake_cuda, change, message):
    handle = parse_handle(CUDA_HANDLE.as_json())
    with pytest.raises(SharedMemoryError, match=message):
        BufferReader(type(handle)(**{**vars(handle), **change}), torch.device("cuda", 0))


def test_what_torch_exports_reaches_torch_in_the_other_process(fake_cuda, monkeypatch):
    exported = (0, b"m" * 66, 1024, 512, b"/torch_1_2_3", 5, b"e" * 64, True)
    storage_class = type(torch.zeros(1).untyped_storage())
    monkeypatch.setattr(storage_class, "_share_cuda_", lambda self: exported, raising=False)
    synchronized = []
    monkeypatch.setattr(
        torch.cuda, "synchronize", lambda device: synchronized.append(buffer._data.tolist())
    )
    buffer = SharedBuffer(torch.device("cuda", 0), 1024)
    handle = buffer.handle()
    assert synchronized[-1][:16] == list(handle.proof)  # it is there before anybody looks
    FakeStorage.memory[:16] = buffer._data[:16]
    BufferReader(parse_handle(json.loads(json.dumps(handle.as_json()))), torch.device("cuda", 1))
    assert FakeStorage.opened == [(1, *exported[1:])]
    FakeStorage.memory[:16] = torch.tensor(list(PROOF))
    # So is each piece before it is announced.
    for start, length in buffer.fill([torch.arange(200.0)[:, None].expand(200, 2)]):
        piece = torch.arange(200.0).repeat_interleave(2).view(torch.uint8)[start : start + length]
        assert synchronized[-1][:length] == piece.tolist()


def test_a_buffer_on_a_gpu_is_none_for_a_model_on_the_cpu():
    with pytest.raises(SharedMemoryError, match="on a GPU, the model on cpu"):
        BufferReader(CUDA_HANDLE, CPU)
