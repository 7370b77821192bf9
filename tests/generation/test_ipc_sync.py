"""Weights through shared memory into a real vLLM server; on CPUs, the memory is the host's."""

import base64
import copy
import logging
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from trl_r1zero.functional import get_response_log_probs
from trl_r1zero.generation import weight_engines
from trl_r1zero.generation.shared_buffer import (
    CPUHandle,
    CUDAHandle,
    SharedBuffer,
    SharedMemoryError,
)
from trl_r1zero.generation.vllm_client import VLLMRefusal, VLLMServerEngine
from trl_r1zero.generation.vllm_server import VLLMServerConfig, installed_vllm
from trl_r1zero.generation.weight_engines import GlooWeightSync, IPCWeightSync, open_weight_sync
from trl_r1zero.generation.weight_transfer import TensorInfo

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(installed_vllm() is None, reason="vLLM is missing: make vllm"),
]

CPU = torch.device("cpu")
PROMPT = "Question: 12 - 7 = "


@pytest.fixture(scope="module")
def engine(served_model_folder, tmp_path_factory):
    config = VLLMServerConfig(dtype="float32", max_model_len=256, weight_transfer="ipc")
    log_path = tmp_path_factory.mktemp("ipc_server") / "server.log"
    engine = VLLMServerEngine.start(str(served_model_folder), config, log_path=log_path)
    yield engine
    engine.close()


@pytest.fixture
def model(served_model_folder):
    """Other weights in each test than the server was started with, or has from another one."""
    model = AutoModelForCausalLM.from_pretrained(served_model_folder, dtype=torch.float32)
    change(model)
    return model


def change(model) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))


def named(model) -> list[tuple[str, torch.Tensor]]:
    return [(name, parameter.data) for name, parameter in model.named_parameters()]


def send(sync, tensors: list[tuple[str, torch.Tensor]]) -> None:
    sync.update([TensorInfo.of(*pair) for pair in tensors], iter(tensors))


def assert_has_weights_of(engine, model) -> None:
    ids = engine.tokenizer(PROMPT)["input_ids"]
    tokens = torch.tensor([ids])
    with torch.no_grad():
        expected = get_response_log_probs(model, tokens[:, :-1], tokens[:, 1:])["log_probs"]
    assert engine.log_probs(ids) == pytest.approx(expected[0].tolist(), abs=2e-5)


def test_weights_arrive_again_and_again(engine, model):
    sync = open_weight_sync(engine, CPU, timeout_seconds=60)
    assert isinstance(sync, IPCWeightSync)
    for _ in range(2):
        send(sync, named(model))
        assert_has_weights_of(engine, model)
        change(model)
    sync.close()


def test_tensors_larger_than_the_buffer_arrive_in_pieces(engine, model):
    buffer_bytes = 1000
    assert max(tensor.nbytes for _, tensor in named(model)) > 10 * buffer_bytes
    sync = IPCWeightSync(engine, CPU, timeout_seconds=60, buffer_bytes=buffer_bytes)
    send(sync, named(model))
    assert_has_weights_of(engine, model)
    sync.close()


@pytest.mark.parametrize("way", ["ipc", "gloo"])
def test_an_update_that_broke_off_within_a_layer_leaves_nothing_behind(engine, model, way):
    sync = (
        IPCWeightSync(engine, CPU, timeout_seconds=60)
        if way == "ipc"
        else GlooWeightSync(engine, timeout_seconds=60)
    )
    old = copy.deepcopy(model)
    change(model)
    names = [name for name, _ in named(model)]
    # The server puts the query's, the key's and the value's weights into one layer of its own.
    within = next(number for number, name in enumerate(names) if "k_proj.weight" in name)
    with pytest.raises(VLLMRefusal, match=r"refused /update_weights"):
        send(sync, [*named(old)[: within + 1], ("model.unknown.weight", torch.zeros(3))])
    send(sync, named(model))
    assert_has_weights_of(engine, model)


def test_a_server_that_cannot_open_the_buffer_gets_the_weights_by_gloo(
    engine, model, monkeypatch, caplog
):
    # As from another container: a process with this number has no such file open.
    handle = CPUHandle(1000, bytes(16), os.getpid(), 10**6)
    monkeypatch.setattr(SharedBuffer, "handle", lambda self: handle)
    with caplog.at_level(logging.WARNING, weight_engines.__name__):
        sync = open_weight_sync(engine, CPU, timeout_seconds=60)
    (record,) = caplog.records
    assert "weights go to the vLLM server through gloo" in record.message
    assert "have to be on one machine" in record.message
    assert isinstance(sync, GlooWeightSync)
    send(sync, named(model))
    assert_has_weights_of(engine, model)


def test_a_trainer_without_memory_to_share_sends_by_gloo(engine, model, monkeypatch, caplog):
    def fail(self) -> None:
        raise SharedMemoryError("CUDA does not share memory here")

    monkeypatch.setattr(SharedBuffer, "handle", fail)
    assert isinstance(open_weight_sync(engine, CPU, timeout_seconds=60), GlooWeightSync)
    assert "CUDA does not share memory here" in caplog.text


def test_a_gpus_memory_is_for_one_worker(monkeypatch):
    """The others are on other GPUs."""
    handle = CUDAHandle(1000, bytes(16), b"", 1000, 0, b"", 0, b"", False)
    monkeypatch.setattr(SharedBuffer, "handle", lambda self: handle)
    engine = SimpleNamespace(request=lambda *_, **__: {"world_size": 2})
    with pytest.raises(SharedMemoryError, match="has 2 workers, and one of them alone is on"):
        IPCWeightSync(engine, CPU)


class Touch:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_body_of_garbage_is_refused_and_nothing_in_it_is_run(engine, model, tmp_path):
    touched = tmp_path / "touched"
    pickled = base64.b64encode(pickle.dumps(Touch(touched))).decode()
    good = CPUHandle(1000, bytes(16), os.getpid(), 1).as_json()
    bodies = [
        {"buffer": pickled},
        {"buffer": {"kind": "cuda", "handle": pickled}},
        {"buffer": {**good, "proof": pickled}},
        {"buffer": {**good, "fd": pickled}},
        {"buffer": {**good, "kind": "pickle"}},
        {"buffer": good},  # an open file of this process, but no buffer
        {"buffer": {}, "ipc_handles_pickled": pickled},
        {"ipc_handles_pickled": pickled},
        {},
    ]
    for body in bodies:
        with pytest.raises(VLLMRefusal) as refusal:
            engine.request("POST", "/init_weight_transfer_engine", {"init_info": body})
        assert 400 <= refusal.value.status <= 599
    assert not touched.exists()
    # Nor does it harm the server.
    sync = IPCWeightSync(engine, CPU, timeout_seconds=60)
    send(sync, named(model))
    assert_has_weights_of(engine, model)
    info = {"names": [], "dtype_names": [], "shapes": []}
    for update in ({**info, "start": 0, "num_bytes": 10**12}, info, {"ipc_handles": pickled}):
        engine.request("POST", "/start_weight_update", {})
        with pytest.raises(VLLMRefusal):
            engine.request("POST", "/update_weights", {"update_info": update})
    send(sync, named(model))
    assert_has_weights_of(engine, model)
