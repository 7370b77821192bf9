"""Tiny real models, data and tokenizers, built on the spot; no network, no downloads."""

import os

# Two threads on busy cores are slower than one; and the results do not depend on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
import torch
from tiny_models import make_tiny_model
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

from trl_r1zero.data.embedded_tokenizer import build_embedded_tokenizer

torch.set_num_threads(1)


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
