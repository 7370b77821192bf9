"""Which implementations of attention may get concatenated rows, and which are fastest with them.

transformers tells rows apart by their positions, which begin anew. Flash attention then works on
each row alone, at the cost of its own length. Implementations that take a mask (`sdpa`, `eager`,
`flex_attention`) get one that keeps rows apart, and most compute what it hides. Others get neither.
"""

import logging
from typing import Any

from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

logger = logging.getLogger(__name__)

# Layers in which a token sees others by attention alone. Those with a state carry it on.
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


def packs_rows(pack_rows: bool | None, config: Any) -> bool:
    """Whether rows are concatenated, not padded: what is set, or what suits the attention of a
    model's config. A ValueError if it is set, and rows would see one another."""
    if pack_rows is False:
        return False
    config = config.get_text_config(decoder=True)
    attention = config._attn_implementation
    alone = is_flash_attention_requested(requested_attention_implementation=attention)
    stateful = sorted(set(getattr(config, "layer_types", None) or ()) - _ATTENTION_LAYERS)
    if pack_rows is None:
        return alone and not stateful
    if stateful:
        raise ValueError(
            f"pack_rows is true, but the model has layers ({', '.join(stateful)}) in which a row "
            "would see those before it; remove pack_rows"
        )
    if not alone and attention not in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys():
        raise ValueError(
            f"pack_rows is true, but with attn_implementation {attention!r} rows would see one "
            "another; set it to kernels-community/flash-attn2 (extra kernels), or remove pack_rows"
        )
    if not alone:
        logger.warning(
            "pack_rows is true, but %s attention computes what lies between rows, too, and masks "
            "it; it pays with flash attention (attn_implementation: kernels-community/flash-attn2)",
            attention,
        )
    return True
