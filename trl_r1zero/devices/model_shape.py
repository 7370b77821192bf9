"""What of a language model's architecture decides how much memory it takes."""

from dataclasses import dataclass
from typing import Any

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Decoders of one design: RMSNorm, rotary positions, grouped queries, a gated MLP. What other
# architectures keep for the backward pass was not worked out.
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")


@dataclass(frozen=True)
class ModelShape:
    """A decoder, in numbers.

    Attributes:
        model_type: transformers' name of the architecture.
        num_heads, num_kv_heads: Of the queries; of the keys, and of the values.
        max_positions: The longest text that the architecture is made for, in tokens.
        tied: Whether the head is the embedding.
        num_parameters: All weights; a tied head counts once.
        num_layer_matrix_parameters: Of these, the matrices of one layer.
    """

    model_type: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocabulary_size: int
    max_positions: int
    tied: bool
    num_parameters: int
    num_layer_matrix_parameters: int

    @classmethod
    def from_config(cls, config: Any) -> "ModelShape":
        """The shape that a config of transformers describes; weights are counted, never made.

        Raises:
            ValueError: It is an architecture whose memory was not worked out.
        """
        config = config.get_text_config(decoder=True)
        if config.model_type not in MODEL_TYPES:
            raise ValueError(
                f"the memory of a {config.model_type} is not known here, only that of "
                f"{', '.join(MODEL_TYPES)}"
            )
        num_parameters, num_layer_matrix_parameters = _count_parameters(config)
        heads = config.num_attention_heads
        return cls(
            model_type=config.model_type,
            hidden_size=config.hidden_size,
            num_layers=config.num_hidden_layers,
            num_heads=heads,
            num_kv_heads=config.num_key_value_heads or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            intermediate_size=config.intermediate_size,
            vocabulary_size=config.vocab_size,
            max_positions=config.max_position_embeddings,
            tied=config.tie_word_embeddings,
            num_parameters=num_parameters,
            num_layer_matrix_parameters=num_layer_matrix_parameters,
        )

    @property
    def num_head_parameters(self) -> int:
        """Of the matrix that makes logits, which the embedding has too."""
        return self.vocabulary_size * self.hidden_size

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that a server keeps of a token: keys and values of all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def has_query_norm(self) -> bool:
        """Whether queries and keys are normalised by head."""
        return self.model_type == "qwen3"


def _count_parameters(config: Any) -> tuple[int, int]:
    """All parameters, and those in matrices of one layer."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    # The meta device ties nothing by itself, but one parameter under two names is given once.
    model.tie_weights()
    linear = [m for m in model.base_model.layers[0].modules() if isinstance(m, torch.nn.Linear)]
    matrices = sum(module.weight.numel() for module in linear)
    return sum(parameter.numel() for parameter in model.parameters()), matrices
