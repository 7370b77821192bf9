"""What decides the memory of a training process: the model's shape, and the setup."""

from dataclasses import dataclass
from typing import Any

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Decoders of one design: RMSNorm, rotary positions, grouped queries, a gated MLP. What other
# architectures keep for the backward pass was not worked out.
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
ATTENTIONS = ("sdpa", "flash", "eager")
SHARDINGS = ("none", "zero2", "zero3")

# (how many numbers an optimizer keeps for each weight, bytes of one; None: as many as the weight
# has) -> such optimizers, as transformers' `optim` names them. A paged optimizer moves to the host
# what does not fit; all is counted here.
_STATES: dict[tuple[int, float | None], str] = {
    (0, None): "sgd adafactor",  # Adafactor: a row and a column for each matrix
    (1, None): "rmsprop adagrad",
    (1, 1): "lion_8bit paged_lion_8bit rmsprop_bnb_8bit",
    (1, 4): "lion_32bit paged_lion_32bit rmsprop_bnb rmsprop_bnb_32bit",
    (2, None): "adamw_torch adamw_torch_fused adamw_apex_fused adamw_anyprecision",
    (2, 0.5): "adamw_torch_4bit",
    (2, 1): "adamw_bnb_8bit adamw_8bit adamw_torch_8bit paged_adamw_8bit",
    (2, 4): "paged_adamw_32bit",
    (3, None): "ademamix",
    (3, 1): "ademamix_8bit paged_ademamix_8bit",
    (3, 4): "paged_ademamix_32bit",
}
_STATES_BY_NAME = {name: kept for kept, names in _STATES.items() for name in names.split()}
OPTIMIZERS = tuple(sorted(_STATES_BY_NAME))


def state_bytes(optimizer: str, weight_bytes: int, master_weights: bool = False) -> float:
    """Bytes that it keeps for each weight of so many bytes; as AdamW where it is not known.

    With master weights it keeps all in float32, and a copy of the weight besides.
    """
    number, size = _STATES_BY_NAME.get(optimizer, (2, None))
    return 4 * (number + 1) if master_weights else number * (weight_bytes if size is None else size)


@dataclass(frozen=True)
class ModelShape:
    """A decoder, in numbers; `model_type` is transformers' name of the architecture."""

    model_type: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocabulary_size: int
    max_positions: int  # tokens of the longest text that it is made for
    tied: bool  # whether the head is the embedding
    num_parameters: int  # a tied head counts once
    num_layer_matrix_parameters: int  # in the matrices of one layer

    @classmethod
    def from_config(cls, config: Any) -> "ModelShape":
        """From a config of transformers; a ValueError for an architecture that is not known."""
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


@dataclass(frozen=True)
class TrainingSetup:
    """What decides the memory of a training process besides the model."""

    weights_dtype: str = "float32"
    autocast: bool = True  # forward and backward in bfloat16 over float32 weights
    optimizer: str = "adamw_torch_fused"
    trainable_parameters: int | None = None  # with adapters (LoRA); None: all weights learn
    gradient_checkpointing: bool = False
    fused_lm_head: bool = True  # log-probabilities come from TRL's fused head, without logits
    # The loss is transformers' own, in float32 on all logits at a time (instruction tuning), and
    # not the log-probabilities of `functional`.
    transformers_loss: bool = False
    attention: str = "sdpa"  # sdpa or flash, both linear in the length, or eager, quadratic
    # Rows are concatenated without padding; with sdpa and eager that makes attention quadratic in
    # the tokens of a micro-batch.
    packed: bool = False
    reference_model: bool = False  # a second, frozen model is kept
    processes: int = 1  # of trainers, all together
    # none (DDP where there are several processes), zero2 (gradients and optimizer state are
    # sharded) or zero3 (weights too; FSDP is the same).
    sharding: str = "none"
    on_cuda: bool = True
    tokens: int = 2048  # of a micro-batch, padding included
    longest_row: int = 1024  # in tokens, prompt and completion
    logit_positions: int | None = None  # of a micro-batch, whose logits are computed; None: all

    def __post_init__(self) -> None:
        allowed = {"weights_dtype": tuple(DTYPE_BYTES), "optimizer": OPTIMIZERS}
        for name, words in (allowed | {"attention": ATTENTIONS, "sharding": SHARDINGS}).items():
            if (value := getattr(self, name)) not in words:
                raise ValueError(f"{name} must be one of {', '.join(words)}; got {value!r}")

    @property
    def weight_bytes(self) -> int:
        """Of one weight."""
        return DTYPE_BYTES[self.weights_dtype]

    @property
    def compute_bytes(self) -> int:
        """Of one number in the matrix products."""
        return 2 if self.autocast else self.weight_bytes

    @property
    def casts_weights(self) -> bool:
        """Whether matrices are copied to bfloat16 for a micro-batch."""
        return self.autocast and self.weight_bytes > 2

    @property
    def shards(self) -> int:
        """Among how many processes gradients and optimizer state are sharded."""
        return 1 if self.sharding == "none" else self.processes

    @classmethod
    def from_arguments(
        cls, args: Any, weights_dtype: str, attention: str, **rest: Any
    ) -> "TrainingSetup":
        """The setup that a config of `trl_r1zero.trainers` describes, after `__post_init__`.

        `attention` is transformers' name, such as `flash_attention_2`; `rest` has the other
        attributes: those of model, processes and micro-batch.
        """
        on_cuda = rest.setdefault("on_cuda", not args.use_cpu)
        return cls(
            weights_dtype=weights_dtype,
            autocast=bool(args.bf16) and weights_dtype == "float32",
            optimizer=getattr(args.optim, "value", args.optim),
            gradient_checkpointing=args.gradient_checkpointing,
            fused_lm_head=on_cuda if args.fused_lm_head is None else args.fused_lm_head,
            attention=attention_kind(attention),
            packed=args.pack_rows or args.share_prefixes,
            **rest,
        )


def attention_kind(implementation: str | None) -> str:
    """One of `ATTENTIONS`, from transformers' name; None is its default."""
    return {None: "sdpa", "sdpa": "sdpa", "eager": "eager"}.get(implementation, "flash")


def sharding_of(distributed_type: str, zero_stage: int | None = None) -> str:
    """One of `SHARDINGS`, from accelerate's `distributed_type`, and DeepSpeed's stage."""
    stage = {"FSDP": 3, "DEEPSPEED": zero_stage}.get(distributed_type)
    return {2: "zero2", 3: "zero3"}.get(stage or 0, "none")
