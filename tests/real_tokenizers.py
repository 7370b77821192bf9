"""Tokenizers of the kinds that real models have, trained on the spot, with chat templates."""

import json

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

CORPUS = [
    "the answer is 10</answer>\n",
    "<think> 2 + 3 = 5 </think> <answer>5</answer>\n\n",
    " hello world, \n a b c 100</answer>. Größe 中文 é",
] * 50
# The splits of Qwen and Llama 3: `>` and the line breaks behind it are one piece.
SPLITS = r" ?[^\s\p{L}\p{N}]+[\r\n]*| ?\p{L}+|\p{N}| ?\s+"
END_OF_TURN = "<|im_end|>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Llama's: it begins with the begin token, trims, and closes a turn with another than eos.
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)


def byte_level_tokenizer(
    splits: bool = True, eos_token: str = "<|endoftext|>", chat_template: str | None = CHATML
) -> PreTrainedTokenizerBase:
    """Byte-level BPE with merges across the ends of stop strings; there is no pad token.

    Without `splits`, merges are made across words too: `5</answer>` is one token.
    """
    backend = Tokenizer(models.BPE())
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = pre_tokenizers.Split(Regex(SPLITS), "isolated")
    both = pre_tokenizers.Sequence([pieces, bytes_only])
    backend.pre_tokenizer = both if splits else bytes_only  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>", "<|im_start|>", END_OF_TURN],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos_token, chat_template=chat_template
    )


def sentencepiece_like_tokenizer(chat_template: str | None = LLAMA) -> PreTrainedTokenizerBase:
    """As Llama's first ones: a begin token, a space before every text that is not decoded, bytes as
    tokens; there is no pad token."""
    backend = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(  # type: ignore[assignment]
        replacement="▁", prepend_scheme="first", split=False
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    model = json.loads(backend.to_str())["model"]
    tokenizer = LlamaTokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        add_bos_token=True,
    )
    special_tokens = ["<|start|>", "<|end|>", "<|eot_id|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special_tokens})
    tokenizer.chat_template = chat_template
    return tokenizer


TOKENIZERS = {
    "byte-level": byte_level_tokenizer,
    "byte-level across words": lambda: byte_level_tokenizer(splits=False),
    "sentencepiece-like": sentencepiece_like_tokenizer,
}
