"""Runs for tests of the doctor: a recipe, a launch and a machine, none of which is here."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from memory_shapes import qwen_math_config

from trl_r1zero.data.embedded_tokenizer import build_embedded_tokenizer
from trl_r1zero.devices import MachineFacts
from trl_r1zero.devices.memory import ModelShape
from trl_r1zero.doctor import Finding
from trl_r1zero.doctor.launch import Launch
from trl_r1zero.doctor.model import Model
from trl_r1zero.doctor.run import Run, read_run_recipe


def qwen_math_folder(folder: Path) -> Path:
    """Qwen2.5-Math-1.5B's config and a tokenizer, without weights."""
    qwen_math_config().save_pretrained(folder)
    build_embedded_tokenizer().save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def math_rows(number: int, start: int = 0) -> list[dict[str, Any]]:
    """Sums, as rows of MATH."""
    return [
        {"problem": f"What is {n} + {n}?", "answer": str(2 * n)}
        for n in range(start, start + number)
    ]


def make_run(
    assume: str = "80GB",
    *settings: str,
    method: str = "grpo",
    launch: Launch | None = None,
    environment: dict[str, str] | None = None,
) -> Run:
    """A run on a machine that is assumed; settings are `--key=value`."""
    arguments = ["--output_dir=runs/none", "--model_name_or_path=model", *settings]
    _, recipe = read_run_recipe(arguments, method)
    return Run(
        method=method,
        recipe=recipe,
        launch=launch or Launch(),
        machine=MachineFacts.assume(assume),
        environment=environment or {},
        vllm="0.31.0",
    )


def qwen_math_model(dtype: str = "float32") -> Model:
    """What the doctor knows of Qwen2.5-Math-1.5B."""
    config = qwen_math_config()
    shape = ModelShape.from_config(config)
    return Model(config.max_position_embeddings, None, shape, dtype, None)


def levels(findings: Iterable[Finding]) -> dict[str, str]:
    """Check -> its level."""
    return {finding.check: finding.level for finding in findings}
