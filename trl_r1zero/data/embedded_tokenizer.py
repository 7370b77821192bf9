"""The tokenizer of the small model that is trained on the embedded task: 320 tokens.

Byte-level BPE, so that any text can be encoded; single digits, so that a number is spelled out; one
token for each of the four tags; and its own pad token beside eos.

It is a `Qwen2Tokenizer`, for `AutoTokenizer` gives nothing else for a Qwen2 model: whatever
tokenizer lies in the model's folder, transformers 5 takes its vocabulary and merges, and puts
Qwen2's own normaliser and pre-tokenizer in front, without a word. That pre-tokenizer never joins a
space to a digit, and here ` 7` is to be one token, as every number of the task has a space before
it. So these ten, like the tags, are *added* tokens, which are matched before the pre-tokenizer sees
the text. They are ordinary (not special): decoding keeps them.

`decode(encode(text)) == text` for all text in Unicode normal form C (Qwen2's normaliser makes it
so).
"""

import json
import re
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING

from trl_r1zero.data.prompts import load_prompt
from trl_r1zero.data.tasks.chain_arithmetic import ChainArithmeticTask, solve_trace
from trl_r1zero.data.tasks.countdown import CountdownTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 320
EOS_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# The prompts that the merges are learned from. A further prompt is not to change the ids, nor with
# them what the small model learns.
CORPUS_PROMPTS = ("r1_zero", "question_only", "chain_arithmetic")
SPACED_DIGITS = tuple(f" {digit}" for digit in range(10))


def build_embedded_tokenizer(corpus: Iterable[str] | None = None) -> "PreTrainedTokenizerFast":
    """Trains and returns the tokenizer; the same corpus gives the same ids.

    Ids: first the 256 bytes, then the merges, then eos, pad, the tags, and ` 0` to ` 9`.

    Args:
        corpus: texts from which the merges are learned. None: chains with their solutions, some
            countdown puzzles and some of the built-in prompts.

    Returns:
        A tokenizer with at most `VOCABULARY_SIZE` tokens and no begin token. `save_pretrained`
        beside a Qwen2 model and `AutoTokenizer.from_pretrained` give the same ids again.
    """
    # Imported here: transformers takes seconds, and the constants above are wanted without it.
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    added = [AddedToken(text, special=False, normalized=False) for text in (*TAGS, *SPACED_DIGITS)]
    # The empty tokenizer lends its own normaliser and pre-tokenizer to the training of the merges.
    frame = Qwen2Tokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = frame.normalizer
    bpe.pre_tokenizer = frame.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(added) - 2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Only what stands between added tokens ever reaches the BPE model.
    between = re.compile("|".join(map(re.escape, (*TAGS, *SPACED_DIGITS))))
    texts = default_corpus() if corpus is None else corpus
    bpe.train_from_iterator(chain.from_iterable(map(between.split, texts)), trainer)

    tokenizer = Qwen2Tokenizer(
        vocab=bpe.get_vocab(),
        # The library gives the merges of a trained model only in its JSON form.
        merges=[(a, b) for a, b in json.loads(bpe.to_str())["model"]["merges"]],  # type: ignore[misc]
        eos_token=EOS_TOKEN,
        unk_token=EOS_TOKEN,  # never produced: every byte is in the vocabulary
        pad_token=PAD_TOKEN,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens(added)
    return tokenizer


def default_corpus() -> list[str]:
    """Returns the texts that the merges are learned from when no corpus is given."""
    chains = ChainArithmeticTask(num_train=256).load()
    puzzles = CountdownTask(num_train=8).load()
    chain_prompt = load_prompt("chain_arithmetic")
    return [
        *(chain_prompt.format(chain.question) + solve_trace(chain.question) for chain in chains),
        *(puzzle.question for puzzle in puzzles),
        *(load_prompt(name).template for name in CORPUS_PROMPTS),
    ]
