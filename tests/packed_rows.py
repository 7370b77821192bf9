"""Packed instruction data, worked by hand on a tokenizer that makes the template two tokens.

In the tokenizer `numbers` the word "10" has the id 10, all that stands before the prompt is the
token 3, and what stands between prompt and response is the token 4. So the row

    {"prompt": "10 11", "response": "12"}    is    1 3 10 11 4 12 2

with the begin token 1 and the end token 2.
"""

import gzip
import json
from itertools import chain

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS, EOS, BEFORE, BETWEEN = 1, 2, 3, 4
ROWS = [
    {"prompt": "10 11", "response": "12"},
    {"prompt": "20", "response": "21 22 23"},
    {"prompt": "30", "response": "31"},
]
DOCUMENTS = [
    [1, 3, 10, 11, 4, 12, 2],
    [1, 3, 20, 4, 21, 22, 23, 2],
    [1, 3, 30, 4, 31, 2],
]
TOKENS = list(chain(*DOCUMENTS))  # 7 + 8 + 6 = 21


class AnotherTokenizer(PreTrainedTokenizerFast):
    """It might do something of its own before or after its backend."""


def number_tokenizer(
    template: str = "<s> $A",
    eos_token: str | None = "</s>",
    kind: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast,
    **settings,
):
    words = {"?": 0, "<s>": BOS, "</s>": EOS, "BEFORE": BEFORE, "BETWEEN": BETWEEN}
    words |= {str(number): number for number in range(5, 100)}
    backend = Tokenizer(models.WordLevel(words, unk_token="?"))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"^Below is [^#]*### Instruction:\n"), "BEFORE "),
            normalizers.Replace("\n\n### Response:\n", " BETWEEN "),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    specials = [("<s>", BOS), ("</s>", EOS)]
    backend.post_processor = processors.TemplateProcessing(template, special_tokens=specials)
    return kind(tokenizer_object=backend, eos_token=eos_token, pad_token="?", **settings)


def written(tmp_path, rows=ROWS, name="rows.jsonl"):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def pairs(dataset):
    return [(item["input_ids"].tolist(), item["labels"].tolist()) for item in dataset]


def stream(dataset):
    """All tokens that a dataset of chunks of length 1 has, the last label too."""
    assert dataset.seq_length == 1
    chunks = pairs(dataset)
    return [ids[0] for ids, _ in chunks] + chunks[-1][1]
