"""Transformers, a vLLM server and vLLM in a process give the same completions of the same tokens.

The model says what it is told, whatever the backend, so that stop strings end in the middle of
tokens. As a program, it samples with vLLM in its process:

    python tests/generation/test_backends_agree.py MODEL OUTPUT.json
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from offline_vllm import needs_vllm
from real_tokenizers import byte_level_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from trl_r1zero.generation import Completion, Engine, SamplingConfig, TransformersEngine, in_order
from trl_r1zero.generation.vllm_client import VLLMServerEngine
from trl_r1zero.generation.vllm_server import VLLMServer, VLLMServerConfig

pytestmark = [pytest.mark.slow, needs_vllm]

# What follows each prompt, whose last token stands nowhere else.
SCRIPTS = {
    "Q:": " hello5</answer>\n\n world,",
    "9": "Größe2</answer>\n\n world",  # joins the first at "</"
    "8": "x<|im_end|>y",
    "7": "é<|endoftext|>z",
}
STOPS: dict[str, tuple[str | int, ...]] = {
    "a stop string": ("</answer>",),
    "inside of tokens": ("lo5<",),
    "across tokens": ("swer>\n", "öß"),
    "the end of a turn": (2,),
    "a special token": ("<|im_end|>",),
}
GREEDY = SamplingConfig(temperature=0, max_tokens=12, min_tokens=0)
SAMPLINGS = {name: replace(GREEDY, stop=stop) for name, stop in STOPS.items()} | {
    "held back": replace(GREEDY, stop=("</answer>",), min_tokens=8),
    "a few tokens": replace(GREEDY, stop=("</answer>",), max_tokens=3),
}


def scripted_model(tokenizer, texts: Iterable[str]) -> LlamaForCausalLM:
    """A model whose likeliest next token follows from the last one alone, as in the texts."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()  # what is left is the embedding of the last token
        inputs.normal_()
        outputs.zero_()
        for text in texts:
            for token, following in pairwise(tokenizer(text)["input_ids"]):
                outputs[following] += inputs[token]
    return model


def sample_all(engine: Engine) -> dict[str, list[tuple[list[int], str, str]]]:
    ids = [engine.tokenizer(prompt)["input_ids"] for prompt in SCRIPTS]

    def row(completion: Completion) -> list:
        assert len(completion.log_probs) == len(completion.token_ids)
        return [completion.token_ids, completion.text, completion.finish_reason]

    return {
        name: [row(one) for one in in_order(engine.stream(ids, sampling, range(len(ids))))]
        for name, sampling in SAMPLINGS.items()
    }


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("scripted"), byte_level_tokenizer()
    texts = [prompt + text for prompt, text in SCRIPTS.items()]
    scripted_model(tokenizer, texts).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(model_folder) -> dict[str, list]:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    return sample_all(TransformersEngine(model, tokenizer))


def test_transformers_says_what_it_is_told(expected):
    texts = {name: [row[1] for row in rows] for name, rows in expected.items()}
    assert texts["a stop string"] == [" hello5</answer>", "Größe2</answer>", "xy", "é"]
    assert texts["inside of tokens"][0] == " hello5<"
    assert texts["across tokens"][:2] == [" hello5</answer>\n", "Größ"]
    assert texts["the end of a turn"][2] == "x"
    assert texts["a special token"][2] == "x<|im_end|>"
    reasons = {name: [row[2] for row in rows] for name, rows in expected.items()}
    assert reasons["a stop string"] == ["stop"] * 4
    assert reasons["a few tokens"] == ["length", "length", "length", "stop"]


def test_a_vllm_server_gives_the_same(model_folder, expected, tmp_path):
    config = VLLMServerConfig(dtype="float32", max_model_len=128, weight_transfer="none")
    with VLLMServer(str(model_folder), config, log_path=tmp_path / "server.log") as server:
        assert sample_all(VLLMServerEngine(server.base_url, wait_seconds=10)) == expected


def test_vllm_in_a_process_gives_the_same(model_folder, expected, tmp_path):
    command = [sys.executable, __file__, str(model_folder), str(tmp_path / "rows.json")]
    # Where pytest found this file's imports.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=240, env=environment
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert json.loads((tmp_path / "rows.json").read_text()) == expected


if __name__ == "__main__":
    from trl_r1zero.generation.vllm_offline import OfflineVLLMEngine

    engine = OfflineVLLMEngine.load(
        sys.argv[1], dtype="float32", max_model_len=128, cpu_kv_cache_gb=0.25
    )
    rows = sample_all(engine)
    engine.close()
    Path(sys.argv[2]).write_text(json.dumps(rows))
