"""What we use of vLLM beyond its documented interface: `vllm_compat`, `vllm_engine`, `vllm_plugin`.

If a test here fails after an upgrade, read the new version of what it names before changing the
test.
"""

import json
import logging
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import torch
from weight_server import Wire, replace_cuda, replace_nccl

from trl_r1zero.generation import vllm_compat
from trl_r1zero.generation.vllm_compat import (
    BACKENDS,
    LOG_LINE,
    NCCL_PACKING,
    PLUGIN,
    NCCLCommunicator,
    serve_command,
)
from trl_r1zero.generation.vllm_server_config import VLLMServerConfig
from trl_r1zero.generation.weight_sync import in_thread, update_info
from trl_r1zero.generation.weight_transfer import TensorInfo, TrainerRendezvous

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm")
pytestmark = pytest.mark.timeout(300)

# Prints what vLLM's modules say; they take long to import, and change settings of torch.
PROBE = """
import inspect, json, sys
from importlib import import_module
from typing import get_args
from vllm import LLM, SamplingParams, envs
from vllm.distributed.weight_transfer.base import WeightTransferEngine
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.config.lora import MaxLoRARanks
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest
from vllm.v1.engine import PauseMode
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.inputs import tokens_input
from vllm.logger import _DATE_FORMAT, _FORMAT
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.worker.gpu_worker import Worker

from trl_r1zero.generation import vllm_plugin
from trl_r1zero.generation.vllm_engine import CheckpointWeightEngine

commands = json.loads(sys.argv[1])
routes = {}
for name in ("cache", "rlhf", "server_info", "sleep"):
    for route in import_module(f"vllm.entrypoints.serve.dev.{name}.api_router").router.routes:
        routes[route.path] = sorted(route.methods)
parser = make_arg_parser(FlexibleArgumentParser())
parsed = [vars(parser.parse_args(command)) for command in commands]
vllm_plugin.register()
vllm_plugin.register()
layer = get_layerwise_info(__import__("torch").nn.Linear(1, 1))
print(json.dumps({
    "routes": routes,
    "parsed": [{key: repr(value) for key, value in one.items()} for one in parsed],
    "environment": sorted(envs.environment_variables),
    "log": [_FORMAT, _DATE_FORMAT],
    "sampling": [name for name in SamplingParams.__struct_fields__],
    "abstract": sorted(WeightTransferEngine.__abstractmethods__),
    "left_abstract": sorted(CheckpointWeightEngine.__abstractmethods__),
    "engines": [
        WeightTransferEngineFactory._registry[name]().__name__ for name in json.loads(sys.argv[2])
    ],
    "called_by_worker": sorted(
        name
        for name in ("parse_init_info", "init_transfer_engine", "start_weight_update",
                     "update_weights", "finish_weight_update", "shutdown")
        if f".{name}(" in inspect.getsource(Worker)
    ),
    "layer": [isinstance(layer.loaded_weights, list), layer.load_numel],
    "nccl_update": sorted(NCCLWeightTransferEngine.update_info_cls.__dataclass_fields__),
    "nccl_init": sorted(NCCLWeightTransferEngine.init_info_cls.__dataclass_fields__),
    "shutdown": list(inspect.signature(EngineCoreClient.shutdown).parameters),
    "llm_engine": sorted(vars(LLMEngine)),
    "prompt": dict(tokens_input([5, 6])),
    "pauses": get_args(PauseMode),
    "lora": [get_args(MaxLoRARanks), sorted(LoadLoRAAdapterRequest.model_fields)],
    "request": sorted(CompletionRequest.model_fields),
}))
"""
COMMANDS = {
    "gpu": (VLLMServerConfig(max_model_len=64, max_num_seqs=8, sleep_level=2), "ipc", False),
    "nccl": (VLLMServerConfig(gpu_memory_utilization=0.5, max_lora_rank=9), "nccl", False),
    "cpu": (VLLMServerConfig(cpu_kv_cache_gb=0.5), "gloo", True),
}


def arguments(config: VLLMServerConfig, transfer: str, on_cpu: bool) -> list[str]:
    """Those behind `vllm serve`."""
    command = serve_command("owner/model", config, 8000, transfer, on_cpu)
    return command[command.index("serve") + 1 :]


@pytest.fixture(scope="module")
def probe() -> dict:
    words = [json.dumps([arguments(*one) for one in COMMANDS.values()]), json.dumps(OWN)]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROBE), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


OWN = [BACKENDS["gloo"], BACKENDS["ipc"]]

# The server


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", vllm_compat.SERVER_INFO),
        ("GET", vllm_compat.IS_SLEEPING),
        ("GET", vllm_compat.GET_WORLD_SIZE),
        ("POST", vllm_compat.SLEEP),
        ("POST", vllm_compat.WAKE_UP),
        ("POST", vllm_compat.INIT_TRANSFER),
        ("POST", vllm_compat.START_UPDATE),
        ("POST", vllm_compat.UPDATE_WEIGHTS),
        ("POST", vllm_compat.FINISH_UPDATE),
        ("POST", vllm_compat.RESET_PREFIX_CACHE),
        ("POST", vllm_compat.RESET_RUNNING),
        ("POST", vllm_compat.PAUSE),
        ("POST", vllm_compat.RESUME),
    ],
)
def test_development_endpoints_are_there(method, path, probe):
    assert method in probe["routes"][path.partition("?")[0]]


def test_vllm_understands_our_flags(probe):
    gpu, nccl, cpu = probe["parsed"]
    for one in (gpu, nccl, cpu):
        assert (one["host"], one["port"]) == ("'127.0.0.1'", "8000")
        assert one["generation_config"] == "'vllm'"
        assert one["logprobs_mode"] == "'processed_logprobs'"
        assert one["max_logprobs"] == "-1"
        assert one["disable_uvicorn_access_log"] == "True"
    assert (gpu["max_model_len"], gpu["max_num_seqs"]) == ("64", "8")
    assert gpu["enable_sleep_mode"] == "True"
    assert "trl_r1zero_ipc" in gpu["weight_transfer_config"]
    assert nccl["gpu_memory_utilization"] == "0.5"
    assert [nccl[name] for name in ("enable_lora", "max_lora_rank")] == ["True", "16"]
    assert gpu["enable_lora"] != "True"
    assert cpu["kv_cache_memory_bytes"] == str(2**29)
    assert (cpu["enforce_eager"], cpu["enable_chunked_prefill"]) == ("True", "False")


@pytest.mark.parametrize(
    "name",
    [
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
        "VLLM_CPU_KVCACHE_SPACE",
        "VLLM_CPU_OMP_THREADS_BIND",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE",
        "VLLM_NO_USAGE_STATS",
        "VLLM_PLUGINS",
        "VLLM_PROCESS_NAME_PREFIX",
        "VLLM_RPC_BASE_PATH",
        "VLLM_SERVER_DEV_MODE",
    ],
)
def test_environment_variables_are_read(name, probe):
    assert name in probe["environment"]


def test_the_form_of_a_line_of_the_log(probe):
    record = logging.LogRecord("vllm", logging.ERROR, "/x/core.py", 9, "it %s", ("failed",), None)
    # What vLLM's own filter and formatter add.
    record.fileinfo, record.vllm_process_name, record.process = "core.py", "EngineCore", 5724
    match = LOG_LINE.fullmatch(logging.Formatter(*probe["log"]).format(record))
    assert (match["level"], match["text"]) == ("ERROR", "it failed")
    assert match["process"] == "EngineCore pid=5724"


# The engine in its workers


def test_vllm_finds_the_plugin_by_its_entry_point():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["vllm.general_plugins"] == {
        PLUGIN: "trl_r1zero.generation.vllm_plugin:register"
    }


def test_our_engine_is_registered_under_its_names_and_complete(probe):
    assert probe["engines"] == ["CheckpointWeightEngine"] * 2
    assert probe["left_abstract"] == []
    assert probe["abstract"] == [
        "finish_weight_update",
        "init_transfer_engine",
        "receive_weights",
        "shutdown",
        "start_weight_update",
    ]
    assert len(probe["called_by_worker"]) == 6


def test_requests_that_go_on_and_adapters(probe):
    assert "keep" in probe["pauses"]
    assert set(vllm_compat.FIRST_TOKEN_APART) <= set(probe["request"])
    ranks, fields = probe["lora"]
    assert tuple(ranks) == vllm_compat.LORA_RANKS
    assert {"lora_name", "lora_path"} <= set(fields)


def test_what_an_unfinished_update_leaves_is_where_we_clear_it(probe):
    assert probe["layer"] == [True, 0]


# vLLM in this process


def test_the_fields_of_sampling_params(probe):
    ours = {"n", "seed", "temperature", "top_p", "top_k", "min_p", "max_tokens", "min_tokens"}
    ours |= {"stop", "include_stop_str_in_output", *vllm_compat.HANDOVER_FIELDS}
    assert ours <= set(probe["sampling"])


def test_the_engine_of_an_llm(probe):
    used = {"add_request", "step", "abort_request", "has_unfinished_requests"}
    assert used | {"get_num_unfinished_requests"} <= set(probe["llm_engine"])
    assert "timeout" in probe["shutdown"]
    assert probe["prompt"]["prompt_token_ids"] == [5, 6]


# NCCL


@pytest.fixture
def cuda(monkeypatch) -> None:
    replace_cuda(monkeypatch, current_device=2)
    replace_nccl(monkeypatch, Wire())


def test_what_vllms_nccl_engine_is_told(probe):
    meeting = TrainerRendezvous("127.0.0.1", num_workers=1, port=None, timeout_seconds=20)
    assert set(meeting.init_info | NCCL_PACKING) <= set(probe["nccl_init"])
    assert set(update_info([TensorInfo("w", "float32", (2,))])) <= set(probe["nccl_update"])


def test_vllm_unpacks_what_vllm_packs_for_us(monkeypatch, cuda):
    """Its producer, as we call it, and its consumer, as its server does, over a pipe."""
    from vllm.distributed.weight_transfer import packed_tensor

    class Stream:
        def synchronize(self):
            pass

        __enter__ = __exit__ = lambda *_: None

    class Pipe:
        def __init__(self, chunks):
            self.chunks = chunks

    class Sender(Pipe):
        def broadcast(self, tensor, src):
            assert src == 0
            self.chunks.append(tensor)

    class Receiver(Pipe):
        def broadcast(self, tensor, src):
            tensor.copy_(self.chunks.pop(0))

    monkeypatch.setattr(packed_tensor, "_get_streams", lambda device, number: [Stream()] * number)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setitem(NCCL_PACKING, "packed_buffer_size_bytes", 300)
    communicator = NCCLCommunicator()
    weights = {f"w{n}": torch.randn(n, 5).bfloat16() for n in range(1, 20)}
    chunks = []
    communicator._group = Sender(chunks)
    communicator.broadcast(iter(weights.items()))
    assert len(chunks) > 3
    received = {}
    packed_tensor.packed_nccl_broadcast_consumer(
        iterator=iter((n, (list(t.shape), t.dtype)) for n, t in weights.items()),
        group=Receiver(chunks),
        src=0,
        post_unpack_func=lambda named: received.update(
            (name, tensor.clone()) for name, tensor in named
        ),
        buffer_size_bytes=NCCL_PACKING["packed_buffer_size_bytes"],
        num_buffers=NCCL_PACKING["packed_num_buffers"],
        device="cpu",
    )
    assert list(received) == list(weights)
    assert all(torch.equal(received[name], tensor) for name, tensor in weights.items())


class Library:
    """NCCL's library as vLLM wraps it: what was asked of it."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append(name)


def test_an_aborted_communicator_of_vllm_is_never_touched_again(cuda, monkeypatch):
    """Its memory is freed: a broadcast that the other thread was about to begin must not."""
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary
    from vllm.distributed.weight_transfer import packed_tensor

    group = PyNcclCommunicator.__new__(PyNcclCommunicator)
    group.available, group.disabled, group.rank = True, False, 0
    group.nccl, group.comm, group.device = Library(), object(), torch.device("cuda", 1)
    forgotten = []
    monkeypatch.setattr(
        packed_tensor._get_streams, "cache_clear", lambda: forgotten.append(True), raising=True
    )
    communicator = NCCLCommunicator()
    communicator._group = group
    communicator.abort()
    assert group.nccl.calls == ["ncclCommAbort"]
    assert forgotten
    group.broadcast(torch.zeros(1), src=0)
    communicator.abort()  # a second time
    assert group.nccl.calls == ["ncclCommAbort"]
    assert {"ncclCommAbort"} <= {function.name for function in NCCLLibrary.exported_functions}


def test_joining_as_vllms_trainer_does(cuda, monkeypatch):
    """The id of the communicator reaches a worker through our store."""
    from vllm.distributed.device_communicators import pynccl
    from vllm.distributed.utils import StatelessProcessGroup

    class Joined:
        disabled = False

        def __init__(self, group, device):
            self.rank, self.device = group.rank, device
            self.id = group.broadcast_obj("the unique id" if group.rank == 0 else None, src=0)

    monkeypatch.setattr(pynccl, "PyNcclCommunicator", Joined)
    meeting = TrainerRendezvous("127.0.0.1", num_workers=1, port=None, timeout_seconds=20)

    def worker():
        group = StatelessProcessGroup.create(meeting.address, meeting.port, 1, meeting.world_size)
        return Joined(group, 0).id

    result = in_thread(worker)
    meeting.await_worker(lambda: None)
    communicator = NCCLCommunicator()
    communicator.connect(meeting.store, meeting.world_size, 2)
    assert result.result(timeout=20) == "the unique id"
    assert (communicator._group.rank, communicator._group.device) == (0, 2)
    monkeypatch.setattr(Joined, "disabled", True)
    with pytest.raises(RuntimeError, match="no NCCL library"):
        communicator.connect(meeting.store, meeting.world_size, 2)
