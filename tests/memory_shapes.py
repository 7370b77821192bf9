"""Configs of models that tests of memory are about; no weights."""

from transformers import LlamaConfig, Qwen2Config


def qwen_math_config() -> Qwen2Config:
    """Qwen2.5-Math-1.5B."""
    return Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151936,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )


def smollm_config() -> LlamaConfig:
    """SmolLM2-135M."""
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
