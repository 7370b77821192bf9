"""What decides the memory of a training process besides the model."""

from dataclasses import dataclass
from typing import Any

from .model_shape import DTYPE_BYTES
from .optimizer_states import OPTIMIZERS

ATTENTIONS = ("sdpa", "flash", "eager")
SHARDINGS = ("none", "zero2", "zero3")


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
        transformers_loss: Whether the loss is transformers' own, which works on all logits at a
            time in float32 (instruction tuning), and not the log-probabilities of `functional`.
        attention: `sdpa` or `flash`, both linear in the length, or `eager`, quadratic.
        packed: Whether rows stand one behind the other, without padding; with `sdpa` and `eager`
            that makes attention quadratic in the tokens of a micro-batch.
        reference_model: Whether a second, frozen model is kept.
        processes: Trainer processes, all together.
        sharding: `none` (DDP where there are several processes), `zero2` (gradients and optimizer
            state are shared out) or `zero3` (weights too; FSDP is the same).
        on_cuda: Whether it trains on GPUs.
        tokens: Of a micro-batch, padding included.
        longest_row: Tokens of the longest row, prompt and completion.
        logit_positions: Positions of a micro-batch whose logits are wanted; None: all.
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
        for name, allowed in (
            ("weights_dtype", tuple(DTYPE_BYTES)),
            ("optimizer", OPTIMIZERS),
            ("attention", ATTENTIONS),
            ("sharding", SHARDINGS),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")

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

    @classmethod
    def from_arguments(
        cls, args: Any, weights_dtype: str, attention: str, **rest: Any
    ) -> "TrainingSetup":
        """What a config of a trainer says of it.

        Args:
            args: A config of `trl_r1zero.trainers`, read after `__post_init__`.
            weights_dtype: Of the model that is trained.
            attention: As transformers names the implementation, such as `flash_attention_2`.
            rest: The other attributes: those of model, processes and micro-batch.
        """
        on_cuda = rest.setdefault("on_cuda", not args.use_cpu)
        fused = args.fused_lm_head
        optimizer = args.optim
        return cls(
            weights_dtype=weights_dtype,
            autocast=bool(args.bf16) and weights_dtype == "float32",
            optimizer=getattr(optimizer, "value", optimizer),
            gradient_checkpointing=args.gradient_checkpointing,
            fused_lm_head=on_cuda if fused is None else fused,
            attention=attention_kind(attention),
            packed=args.pack_rows,
            **rest,
        )


def attention_kind(implementation: str | None) -> str:
    """One of `ATTENTIONS`, from transformers' name; None is its default."""
    if implementation is None or implementation == "sdpa":
        return "sdpa"
    return "eager" if implementation == "eager" else "flash"


def sharding_of(distributed_type: str, zero_stage: int | None = None) -> str:
    """One of `SHARDINGS`, from accelerate's name of the way to run several processes."""
    if distributed_type == "FSDP":
        return "zero3"
    if distributed_type == "DEEPSPEED":
        return {2: "zero2", 3: "zero3"}.get(zero_stage or 0, "none")
    return "none"
