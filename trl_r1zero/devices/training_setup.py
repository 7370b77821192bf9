"""What decides the memory of a training process besides the model."""

from dataclasses import dataclass
from typing import Any

from .model_shape import DTYPE_BYTES

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


def num_states(optimizer: str) -> int:
    """Numbers that it keeps for each weight; as AdamW where the name is not known."""
    return _STATES_BY_NAME.get(optimizer, (2, None))[0]


def state_bytes(optimizer: str, weight_bytes: int) -> float:
    """Bytes that it keeps for each weight of so many bytes; as AdamW where it is not known."""
    number, size = _STATES_BY_NAME.get(optimizer, (2, None))
    return number * (weight_bytes if size is None else size)


@dataclass(frozen=True)
class TrainingSetup:
    """What decides the memory of a training process besides the model.

    Attributes:
        weights_dtype: float32, bfloat16 or float16.
        autocast: Forward and backward in bfloat16 over float32 weights.
        optimizer: As the key `optim` names it, one of `OPTIMIZERS`.
        trainable_parameters: With adapters (LoRA), how many there are; None: all weights learn.
        gradient_checkpointing: Whether layers are computed again in backward.
        fused_lm_head: Whether log-probabilities come from TRL's fused head, without logits.
        transformers_loss: Whether the loss is transformers' own, in float32 on all logits at a time
            (instruction tuning), and not the log-probabilities of `functional`.
        attention: `sdpa` or `flash`, both linear in the length, or `eager`, quadratic.
        packed: Whether rows are concatenated without padding; with `sdpa` and `eager` that makes
            attention quadratic in the tokens of a micro-batch.
        reference_model: Whether a second, frozen model is kept.
        processes: Trainer processes, all together.
        sharding: `none` (DDP where there are several processes), `zero2` (gradients and optimizer
            state are sharded) or `zero3` (weights too; FSDP is the same).
        on_cuda: Whether it trains on GPUs.
        tokens: Of a micro-batch, padding included.
        longest_row: Tokens of the longest row, prompt and completion.
        logit_positions: Positions of a micro-batch whose logits are computed; None: all.
    """

    weights_dtype: str = "float32"
    autocast: bool = True
    optimizer: str = "adamw_torch_fused"
    trainable_parameters: int | None = None
    gradient_checkpointing: bool = False
    fused_lm_head: bool = True
    transformers_loss: bool = False
    attention: str = "sdpa"
    packed: bool = False
    reference_model: bool = False
    processes: int = 1
    sharding: str = "none"
    on_cuda: bool = True
    tokens: int = 2048
    longest_row: int = 1024
    logit_positions: int | None = None

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
        """The setup that a config of a trainer describes.

        Args:
            args: A config of `trl_r1zero.trainers`, read after `__post_init__`.
            weights_dtype: Of the model that is trained.
            attention: As transformers names the implementation, such as `flash_attention_2`.
            rest: The other attributes: those of model, processes and micro-batch.
        """
        on_cuda = rest.setdefault("on_cuda", not args.use_cpu)
        return cls(
            weights_dtype=weights_dtype,
            autocast=bool(args.bf16) and weights_dtype == "float32",
            optimizer=getattr(args.optim, "value", args.optim),
            gradient_checkpointing=args.gradient_checkpointing,
            fused_lm_head=on_cuda if args.fused_lm_head is None else args.fused_lm_head,
            attention=attention_kind(attention),
            packed=args.pack_rows,
            **rest,
        )


def attention_kind(implementation: str | None) -> str:
    """One of `ATTENTIONS`, from transformers' name; None is its default."""
    return {None: "sdpa", "sdpa": "sdpa", "eager": "eager"}.get(implementation, "flash")


def sharding_of(distributed_type: str, zero_stage: int | None = None) -> str:
    """One of `SHARDINGS`, from accelerate's `distributed_type`, and DeepSpeed's stage."""
    stage = {"FSDP": 3, "DEEPSPEED": zero_stage}.get(distributed_type)
    return {2: "zero2", 3: "zero3"}.get(stage or 0, "none")
