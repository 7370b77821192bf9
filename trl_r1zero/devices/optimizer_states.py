"""How many bytes of state an optimizer keeps for each weight that it trains."""

# Optimizer, as transformers' `optim` names it -> how many numbers it keeps for each weight, and the
# bytes of one (None: as many as the weight has). A paged optimizer moves to the host what does not
# fit; all is counted here.
_NUMBERS: dict[str, tuple[int, float | None]] = {
    "adamw_torch": (2, None),
    "adamw_torch_fused": (2, None),
    "adamw_apex_fused": (2, None),
    "adamw_anyprecision": (2, None),
    "adamw_bnb_8bit": (2, 1),
    "adamw_8bit": (2, 1),
    "adamw_torch_8bit": (2, 1),
    "adamw_torch_4bit": (2, 0.5),
    "paged_adamw_8bit": (2, 1),
    "paged_adamw_32bit": (2, 4),
    "ademamix": (3, None),
    "ademamix_8bit": (3, 1),
    "paged_ademamix_8bit": (3, 1),
    "paged_ademamix_32bit": (3, 4),
    "lion_32bit": (1, 4),
    "lion_8bit": (1, 1),
    "paged_lion_32bit": (1, 4),
    "paged_lion_8bit": (1, 1),
    "rmsprop": (1, None),
    "rmsprop_bnb": (1, 4),
    "rmsprop_bnb_8bit": (1, 1),
    "rmsprop_bnb_32bit": (1, 4),
    "adagrad": (1, None),
    "sgd": (0, None),
    "adafactor": (0, None),  # a row and a column for each matrix
}
OPTIMIZERS = tuple(sorted(_NUMBERS))


def num_states(optimizer: str) -> int:
    """Numbers that it keeps for each weight; as AdamW where the name is not known."""
    return _NUMBERS.get(optimizer, (2, None))[0]


def state_bytes(optimizer: str, weight_bytes: int) -> float:
    """Bytes that it keeps for each weight of so many bytes; as AdamW where it is not known."""
    number, size = _NUMBERS.get(optimizer, (2, None))
    return number * (weight_bytes if size is None else size)
