"""Tiny real models, data and tokenizers, built on the spot; no network, no downloads."""

import os

# Two threads on busy cores are slower than one; and the results do not depend on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import importlib.util
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from offline_vllm import run_offline_vllm
from tiny_models import make_tiny_model
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM
from xdist.scheduler import LoadScopeScheduling

from trl_r1zero.data.embedded_tokenizer import build_embedded_tokenizer
from trl_r1zero.generation.vllm_server import VLLMServer, VLLMServerConfig

torch.set_num_threads(1)

# A shell lets what it starts in the background ignore Ctrl-C, and so do the children of that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in each run, so that a failure is of the change. Others, which may find more:
# --hypothesis-profile=default
settings.register_profile("repeat", derandomize=True)
settings.load_profile("repeat")

# Files that share what takes long to make: an engine, a submission.
SHARING = {
    "tests/evaluation/test_evaluate_vllm.py": "offline_vllm",
    "tests/generation/test_vllm_offline.py": "offline_vllm",
    "tests/commands/test_eval_command.py": "offline_vllm",
}


class FileScheduling(LoadScopeScheduling):
    """With several workers (`-n 2`), one takes all tests of a file, or of all that share."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", maxsplit=1)[0]
        return "leaderboard" if file.startswith("tests/leaderboard/") else SHARING.get(file, file)


@pytest.hookimpl(optionalhook=True)  # unknown with -p no:xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileScheduling:
    config.option.loadscopereorder = False  # but as pytest_collection_modifyitems has it
    return FileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers begin with the files of slow tests, so that none is left alone with them."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_embedded_tokenizer()


@pytest.fixture
def tiny_model(tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    return make_tiny_model(tokenizer)


@pytest.fixture(scope="session")
def tiny_model_folder(tokenizer: PreTrainedTokenizerBase, tmp_path_factory) -> Path:
    """The tiny model and its tokenizer as a folder, as recipes load them."""
    folder = tmp_path_factory.mktemp("tiny_model")
    make_tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def served_model_folder(tokenizer: PreTrainedTokenizerBase, tmp_path_factory) -> Path:
    """A tiny model that a vLLM server for CPUs can run too."""
    folder = tmp_path_factory.mktemp("served_model")
    make_tiny_model(tokenizer, num_heads=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vllm_server(served_model_folder: Path, tmp_path_factory):
    """One real vLLM server for all tests; its weights are those of whoever sent some last."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: make vllm")
    # A tokenizer without a chat template gets one with each request.
    trusting = ["--trust-request-chat-template"]
    config = VLLMServerConfig(dtype="float32", max_model_len=4096, extra_args=trusting)
    log_path = tmp_path_factory.mktemp("vllm_server") / "server.log"
    with VLLMServer(str(served_model_folder), config, log_path=log_path) as server:
        yield server


@pytest.fixture(scope="session")
def offline_vllm(served_model_folder: Path, tmp_path_factory) -> dict[str, Any]:
    """What `offline_vllm.py` wrote, run once: vLLM in a process, without a server."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: make vllm")
    return run_offline_vllm(served_model_folder, tmp_path_factory.mktemp("offline_vllm"))
