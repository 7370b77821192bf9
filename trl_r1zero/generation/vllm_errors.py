"""What can go wrong between a vLLM server and who asks it."""

from .connections import error_message
from .vllm_server import VLLMServerError


class VLLMConnectionError(VLLMServerError):
    """The server cannot be reached, or cut a request off."""


class VLLMRefusal(VLLMServerError):
    """The server answered a request for `path` with an HTTP status other than 200."""

    def __init__(self, path: str, status: int, text: str) -> None:
        of_weights = status == 500 and "weight" in path
        hint = "; it serves one trainer at a time: is another one using it?" if of_weights else ""
        super().__init__(
            f"the vLLM server refused {path} (HTTP {status}): {error_message(text)}{hint}"
        )
        self.status = status
