"""One interface for everything that samples: evaluation and trainers know no other.

Backends: `TransformersEngine` (here), `VLLMServerEngine` (a vLLM server over HTTP) and
`OfflineVLLMEngine` (a `vllm.LLM`).
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .sampling import Completion, SamplingConfig
from .transformers_backend import stream


class Engine(Protocol):
    """Samples completions.

    Attributes:
        name: What reports call it (`transformers`, `vllm-server`, `vllm`).
        tokenizer: The tokenizer of the model behind it.
    """

    @property
    def name(self) -> str: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    def stream(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        seeds: Sequence[int],
    ) -> Iterator[tuple[int, Completion]]:
        """Sample one completion for each prompt, and yield each as soon as it is complete.

        Args:
            prompt_ids: Token ids of each prompt. A prompt that wants G completions is given G
                times.
            sampling: How to sample.
            seeds: One seed for each prompt (see `row_seeds`).

        Yields:
            (row, completion): each row once, in any order.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds (a server that it started); harmless when repeated."""
        ...


class TransformersEngine:
    """Samples from a transformers model in this process; see `generation.generate`.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        eos_token_ids: Tokens that end a completion; by default those of the model's generation
            config, else the tokenizer's.
        batch_size: At most this many rows at a time; all by default.
    """

    name = "transformers"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        eos_token_ids: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.eos_token_ids = (
            model_eos_token_ids(model, tokenizer) if eos_token_ids is None else list(eos_token_ids)
        )
        self.batch_size = batch_size

    def stream(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        seeds: Sequence[int],
    ) -> Iterator[tuple[int, Completion]]:
        """As `Engine.stream`. The model is in evaluation mode meanwhile."""
        was_training = self.model.training
        self.model.eval()  # no dropout while sampling
        try:
            yield from stream(
                self.model,
                self.tokenizer,
                prompt_ids,
                sampling,
                seeds,
                eos_token_ids=self.eos_token_ids,
                batch_size=self.batch_size,
            )
        finally:
            self.model.train(was_training)

    def close(self) -> None:
        """There is nothing to give back."""


def model_eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a completion, as vLLM takes them: the generation config's and the
    tokenizer's."""
    config = getattr(model, "generation_config", None)
    configured = None if config is None else config.eos_token_id
    ids = [configured] if isinstance(configured, int) else list(configured or [])
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(tokenizer.eos_token_id)
    return ids
