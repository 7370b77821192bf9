"""One trainer at a time has a vLLM server, since it replaces the server's weights."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from trl_r1zero.common.folder_lock import FolderInUseError, holding

from .connections import is_loopback
from .vllm_server import VLLMServerError

__all__ = ["weights_held"]


@contextlib.contextmanager
def weights_held(*base_urls: str) -> Iterator[None]:
    """Keep servers for this process, among those of this machine and user; one that dies holds
    none.

    Raises:
        VLLMServerError: Another process trains with one of them.
    """
    with contextlib.ExitStack() as stack:
        for base_url in base_urls:
            address = urlsplit(base_url)
            host = "localhost" if is_loopback(address.hostname or "") else address.hostname
            name = f"trl_r1zero-{os.getuid()}-server-{host}-{address.port}".replace(":", ".")
            try:
                stack.enter_context(holding(Path(tempfile.gettempdir(), name)))
            except FolderInUseError as error:
                raise VLLMServerError(
                    f"the vLLM server at {base_url} serves one trainer at a time, and {error.who} "
                    "trains with it and replaces its weights; wait for its end, end it, or start "
                    "another server (`trl-r1zero serve MODEL`)"
                ) from None
        yield
