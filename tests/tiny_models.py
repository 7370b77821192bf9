"""The untrained model of the tests, and where the repository is."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

REPOSITORY = Path(__file__).resolve().parents[1]


def make_tiny_model(
    tokenizer: PreTrainedTokenizerBase, seed: int = 0, num_heads: int = 4
) -> Qwen2ForCausalLM:
    """An untrained Qwen2 of 30,000 parameters that knows the tokenizer's vocabulary.

    vLLM on a CPU wants heads of at least 32, the whole width: `num_heads` 1.
    """
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=num_heads,
        num_key_value_heads=max(1, num_heads // 2),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def hub_cache(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    """The hub's cache with a model's config alone; returns its commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = folder / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    return commit
