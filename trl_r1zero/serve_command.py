"""`trl-r1zero serve MODEL`: a vLLM server that a trainer can use, in the foreground."""

import signal
import sys
import time
from types import FrameType

from trl_r1zero.generation.vllm_server import VLLMServer, VLLMServerConfig, VLLMServerError
from trl_r1zero.recipe import parse_recipe

_POLL_SECONDS = 0.5


def main(argv: list[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM.

    Returns:
        0 if the server was ended, 1 if it did not start or died.
    """
    words = sys.argv[1:] if argv is None else argv
    model, settings = (words[0], words[1:]) if words and words[0][:1] != "-" else (None, words)
    (config,) = parse_recipe(
        (VLLMServerConfig,),
        settings,
        description=__doc__ or "",
        program="trl-r1zero serve MODEL",
    ).instances
    if model is None:
        print(
            "trl-r1zero serve: which model? Give its folder or hub id: trl-r1zero serve MODEL",
            file=sys.stderr,
        )
        return 2
    signal.signal(signal.SIGTERM, _interrupt)
    server = VLLMServer(model, config)
    try:
        print(f"Starting a vLLM server for {model}, log in {server.log_path} ...", flush=True)
        server.start()
        print(_recipe_lines(server), flush=True)
        while server.is_alive():
            time.sleep(_POLL_SECONDS)
        error = server.first_error() or "its log names no error"
        print(f"the vLLM server died: {error}\n(its log: {server.log_path})", file=sys.stderr)
        return 1
    except VLLMServerError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Ending the vLLM server.", flush=True)
        return 0
    finally:
        server.stop()


def _recipe_lines(server: VLLMServer) -> str:
    lines = [f"vLLM server ready at {server.base_url}; Ctrl-C ends it."]
    if server.weight_transfer is None:
        return lines[0] + " It takes no weights: it can evaluate, not train."
    return "\n".join(
        [
            *lines,
            "In a recipe:",
            "  use_vllm: true",
            f"  vllm_server_base_url: {server.base_url}",
        ]
    )


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
