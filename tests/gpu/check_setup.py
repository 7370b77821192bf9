"""What the parts of the GPU check share: the model, the data, and how a part tells its results."""

import gc
import json
import os
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from check_report import replace_text
from check_running import FAILED, PASSED, SKIPPED, STATE_FILE
from optimizer_sides import Settings
from rollout_workloads import WORKLOADS, ModelShape, StoredBatch, make_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_r1zero.data.embedded_tokenizer import build_embedded_tokenizer

# More than the embedded tokenizer has, as published models do: the model samples tokens that are
# no text.
_TINY_VOCABULARY = 384
_MAX_THREADS = 8


class CheckFailed(Exception):
    """Something is not as it has to be."""


class CheckSkipped(Exception):
    """It cannot be found out here."""


def require(holds: bool, otherwise: str) -> None:
    """Raise a `CheckFailed` unless it holds."""
    if not holds:
        raise CheckFailed(otherwise)


@dataclass(frozen=True)
class Setup:
    """Where a part runs.

    Attributes:
        device: cuda or cpu.
        model_shape: A key of `WORKLOADS`.
        output: The check's folder.
    """

    device: str
    model_shape: str
    output: Path

    @property
    def on_cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.on_cuda else torch.float32

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return build_embedded_tokenizer()

    @property
    def shape(self) -> ModelShape:
        shape = WORKLOADS[self.model_shape].shape
        return replace(shape, vocabulary_size=shape.vocabulary_size or _TINY_VOCABULARY)

    def model(self, dtype: torch.dtype, num_layers: int | None = None) -> PreTrainedModel:
        """Random weights, the same at each call, made where they are to be: 1.5e9 random numbers
        take a CPU a minute.

        Args:
            dtype: Of the weights.
            num_layers: The shape's if None.
        """
        shape = replace(self.shape, num_layers=num_layers or self.shape.num_layers)
        with torch.device(self.device):
            return make_model(shape, self.tokenizer, dtype, "sdpa")

    def side_settings(self, batch: StoredBatch, *, autocast: bool) -> Settings:
        """What an `OurSide` wants to know, for this batch."""
        return Settings(
            loss="dr_grpo",
            num_rollouts=len(batch.rewards),
            group_size=batch.group_size,
            max_completion_length=WORKLOADS[self.model_shape].max_completion_length,
            autocast=autocast,
            device=torch.device(self.device),
            output_dir=str(self.output / "parts" / "trainers"),
        )

    def model_folder(self) -> Path:
        """The model and its tokenizer on disk, made once for all parts."""
        folder = self.output / f"model-{self.model_shape}"
        if not folder.is_dir():
            new = folder.with_name(folder.name + ".new")
            shutil.rmtree(new, ignore_errors=True)
            self.model(self.dtype).save_pretrained(new)
            self.tokenizer.save_pretrained(new)
            new.rename(folder)
            self.free_memory()
        return folder

    def free_memory(self) -> None:
        """Give back what dropped models had; a trainer and its callbacks know one another."""
        gc.collect()
        if self.on_cuda:
            torch.cuda.empty_cache()


class Recorder:
    """Keeps what a part found out in its folder, also of one that is killed later.

    Attributes:
        folder: The part's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state: dict[str, Any] = {"status": None, "figures": {}}
        self._write()

    def doing(self, what: str) -> None:
        """Say what comes now, for the case that it does not end."""
        self._state["doing"] = what
        print(f"# {what}", flush=True)
        self._write()

    def record(self, **figures: Any) -> None:
        """Add figures; anything that JSON knows."""
        self._state["figures"].update(figures)
        self._write()

    def end(self, status: str, *, summary: str = "", reason: str = "") -> None:
        """Say how it went."""
        self._state.update(status=status, summary=summary, reason=reason, doing="")
        self._write()

    def _write(self) -> None:
        replace_text(self.folder / STATE_FILE, json.dumps(self._state, indent=2))


def carry_out(part: Callable[[Setup, Recorder], str], setup: Setup, name: str) -> int:
    """Run a part's function, which returns its summary; the exit status of the process."""
    recorder = Recorder(setup.output / "parts" / name)
    if setup.on_cuda:
        torch.cuda.set_device(0)
        torch.set_num_threads(min(_MAX_THREADS, os.cpu_count() or 1))
    try:
        summary = part(setup, recorder)
    except CheckSkipped as reason:
        recorder.end(SKIPPED, reason=str(reason))
        return 0
    except BaseException as error:
        traceback.print_exc()
        kind = "" if isinstance(error, CheckFailed) else f"{type(error).__name__}: "
        recorder.end(FAILED, reason=f"{kind}{error}")
        return 1
    recorder.end(PASSED, summary=summary)
    return 0
