"""A trainer in float32 and a real server in bfloat16: what travels, and what it makes of it."""

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_r1zero.functional import get_response_log_probs
from trl_r1zero.generation.vllm_client import VLLMServerEngine
from trl_r1zero.generation.vllm_server import VLLMServer, VLLMServerConfig
from trl_r1zero.generation.weight_sync import open_weight_sync

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_bfloat16_server_makes_the_same_of_rounded_weights(served_model_folder, tmp_path):
    from trl_r1zero.trainers.policy_weights import PolicyWeights

    model = AutoModelForCausalLM.from_pretrained(served_model_folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    weights = PolicyWeights(model, Accelerator(cpu=True), None)
    tokenizer = AutoTokenizer.from_pretrained(served_model_folder)
    ids = tokenizer("Question: 12 - 7\n")["input_ids"]
    config = VLLMServerConfig(dtype="bfloat16", max_model_len=256, weight_transfer="gloo")
    log_path = tmp_path / "server.log"
    with VLLMServer(str(served_model_folder), config, log_path=log_path) as server:
        engine = VLLMServerEngine(server.base_url, tokenizer)
        before = engine.log_probs(ids)
        sync = open_weight_sync(engine, torch.device("cpu"), timeout_seconds=60)
        answers = []
        for dtype in (None, getattr(torch, engine.dtype())):
            weights.server_dtype = dtype
            infos = weights.infos()
            assert {info.torch_dtype for info in infos} == {dtype or torch.float32}
            sync.update(infos, weights.tensors())
            answers.append(engine.log_probs(ids))
    assert answers[0] == answers[1]
    assert answers[0] != before
    tokens = torch.tensor([ids])
    with torch.no_grad():
        expected = get_response_log_probs(model, tokens[:, :-1], tokens[:, 1:])["log_probs"][0]
    assert answers[1] == pytest.approx(expected.tolist(), abs=0.1)
