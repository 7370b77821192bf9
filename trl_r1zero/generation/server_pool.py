"""Several vLLM servers, asked as one."""

import logging
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from .balancer import Balancer
from .vllm_client import VLLMServerEngine
from .vllm_server import VLLMServerError

logger = logging.getLogger(__name__)


class VLLMServerPool(VLLMServerEngine):
    """An `Engine` over servers of the same model that somebody else started.

    Each completion is asked of the server with the fewest unanswered requests. One that fails is
    left out, and what it was asked for goes to the others: the same completions, for each has its
    seed. An error is raised where it was the last one.

    Args:
        base_urls: Two servers or more; all are up at the beginning.
        tokenizer, read_timeout_seconds, wait_seconds: As those of `VLLMServerEngine`.

    Raises:
        ValueError: An address is there twice.
        VLLMServerError: A server is not up, or serves another model than the first, in another
            dtype, or asleep.
    """

    def __init__(
        self,
        base_urls: Sequence[str],
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        read_timeout_seconds: float = 600.0,
        wait_seconds: float = 0.0,
    ) -> None:
        def engine(url: str) -> VLLMServerEngine:
            return VLLMServerEngine(
                url,
                self.tokenizer,
                read_timeout_seconds=read_timeout_seconds,
                wait_seconds=wait_seconds,
            )

        super().__init__(base_urls[0], tokenizer, wait_seconds=wait_seconds)
        self.read_timeout_seconds = read_timeout_seconds
        self.members = [engine(url) for url in base_urls]
        urls = [one.base_url for one in self.members]
        if len(set(urls)) < len(urls):
            raise ValueError(f"vllm_server_base_url has an address twice: {', '.join(urls)}")
        for one in self.members:
            self._check_alike(one)
        self.max_model_len = min(one.max_model_len for one in self.members)
        self.balancer = Balancer(urls)

    def _check_alike(self, one: VLLMServerEngine) -> None:
        first = self.members[0]
        if one.is_sleeping() or one.can_sleep():
            raise VLLMServerError(
                f"the vLLM server at {one.base_url} was started to sleep (sleep_level), which "
                "several servers do not do; start it without"
            )
        for what, mine, its in (
            ("model", first.model, one.model),
            ("dtype", first.dtype(), one.dtype()),
        ):
            if its != mine:
                raise VLLMServerError(
                    f"the vLLM servers are to be alike, but {one.base_url} has the {what} {its}, "
                    f"and {first.base_url} {mine}"
                )

    def lose(self, url: str, error: BaseException) -> bool:
        """As `Balancer.lose`, with a warning."""
        found = url in self.balancer.alive
        left = self.balancer.lose(url)
        if found and left:
            logger.warning(
                "the vLLM server at %s is left out (%s); %d go on, and it is asked again once it "
                "is back", url, error, len(self.balancer.alive),
            )  # fmt: skip
        return left

    def is_down(self, within_seconds: float) -> bool:
        """Whether all are gone."""
        return all(one.is_down(within_seconds) for one in self.members)

    def log_probs(self, prompt_ids: Sequence[int]) -> list[float]:
        """Those of the first that is asked."""
        return self.alive[0].log_probs(prompt_ids)
