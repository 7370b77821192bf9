"""Whether LoRA adapters go to a server by themselves: decisions, without a server."""

import pytest
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from tiny_models import make_tiny_model

from trl_r1zero.generation.adapter_sync import LoraPlan
from trl_r1zero.generation.vllm_compat import LORA_RANKS, serve_command, serve_environment
from trl_r1zero.generation.vllm_server_config import VLLMServerConfig
from trl_r1zero.trainers.policy_weights import lora_plan


def plan(tokenizer, way="auto", sharded=False, versions=1, **settings) -> LoraPlan:
    config = LoraConfig(**{"r": 8, "target_modules": "all-linear", **settings})
    return lora_plan(get_peft_model(make_tiny_model(tokenizer), config), way, sharded, versions)


def test_plain_adapters_go_alone_where_the_server_takes_them(tokenizer):
    auto = plan(tokenizer)
    assert auto.obstacle is None
    assert auto.config["r"] == 8
    assert any(name.endswith("q_proj") for name in auto.config["target_modules"])
    assert auto.go_alone(8, 0)
    assert auto.go_alone(64, 0)
    assert not auto.go_alone(None, 0)
    assert not auto.go_alone(1, 0)
    assert not auto.go_alone(8, 2)
    assert not plan(tokenizer, "merged").go_alone(8, 0)


@pytest.mark.parametrize(
    ("max_rank", "sleep_level", "words"),
    [
        (None, 0, "the server takes no adapters; start it with --max_lora_rank; set auto or merg"),
        (1, 0, "takes ranks up to 1, and theirs is 8"),
        (8, 2, r"gives up its own weights when it sleeps \(level 2\)"),
    ],
)
def test_adapters_that_are_asked_for_and_cannot_go(tokenizer, max_rank, sleep_level, words):
    with pytest.raises(ValueError, match=words):
        plan(tokenizer, "adapters").go_alone(max_rank, sleep_level)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "vLLM loads no adapter with use_dora"),
        ({"bias": "all"}, "with bias"),
        ({"modules_to_save": ["lm_head"]}, "with modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "with rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "with alpha_pattern"),
        ({"r": 513}, "its rank is 513, above 512"),
        ({"target_modules": ["embed_tokens"]}, "the embedding or the head"),
        ({"sharded": True}, "the processes share out the weights"),
    ],
)
def test_what_vllm_would_refuse_or_mistake_is_merged(tokenizer, settings, words):
    auto = plan(tokenizer, **settings)
    assert words in auto.obstacle
    assert not auto.go_alone(512, 0)
    with pytest.raises(ValueError, match=words[:20]):
        plan(tokenizer, "adapters", **settings).go_alone(512, 0)


def test_other_adapters_and_none(tokenizer):
    model = make_tiny_model(tokenizer)
    assert lora_plan(model, "auto", False, 1).obstacle == "the policy has no adapters (use_peft)"
    prefix = get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    assert "PREFIX_TUNING, not LORA" in lora_plan(prefix, "auto", False, 1).obstacle


@pytest.mark.parametrize(("rank", "flag"), [(1, 1), (3, 8), (64, 64), (200, 256), (512, 512)])
def test_a_server_is_started_for_ranks_that_vllm_knows(rank, flag):
    config = VLLMServerConfig(max_lora_rank=rank, max_loras=3)
    command = serve_command("model", config, 8000, "gloo", on_cpu=True)
    assert {"--enable-lora", f"--max-lora-rank={flag}", "--max-loras=3"} <= set(command)
    environment = serve_environment(config, "gloo", on_cpu=True)
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    plain = serve_command("model", VLLMServerConfig(), 8000, "gloo", on_cpu=True)
    assert not [word for word in plain if "lora" in word]


def test_ranks_that_vllm_does_not_know():
    with pytest.raises(ValueError, match="max_lora_rank must be between 1 and 512, got 513"):
        VLLMServerConfig(max_lora_rank=LORA_RANKS[-1] + 1)
    with pytest.raises(ValueError, match="max_lora_rank must be between 1 and 512, got 0"):
        VLLMServerConfig(max_lora_rank=0)
