"""Serves a model with vLLM, with what training and evaluation need of a server.

trl-r1zero serve MODEL [--key value ...] [-- FLAGS OF vllm serve ...]

MODEL is the path of a model's folder, or a hub id. Once the server is ready, the lines for a recipe
are printed, and its log from then on. Ctrl-C or SIGTERM ends it.
"""

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from trl_r1zero.generation.vllm_server import VLLMServer, VLLMServerConfig, VLLMServerError
from trl_r1zero.recipe import parse_recipe

_PROGRAM = "trl-r1zero serve"
_POLL_SECONDS = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """Serve a model until this process is asked to stop; the exit status is 0 after Ctrl-C or
    SIGTERM, 1 if the server does not start or dies, 2 for a command line that cannot be read."""
    model, config = _parse(list(sys.argv[1:] if argv is None else argv))
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = VLLMServer(model, config)
    try:
        server.start()
        print(_banner(server), flush=True)
        _follow_log(server)
        reason = server.first_error() or "its log names no error"
        raise VLLMServerError(f"the server died: {reason}\nIts log: {server.log_path}")
    except VLLMServerError as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vLLM server: stopping", file=sys.stderr)
        return 0
    finally:
        server.stop()
        signal.signal(signal.SIGTERM, previous)


def _parse(arguments: list[str]) -> tuple[str, VLLMServerConfig]:
    asks_for_help = bool({"-h", "--help"} & set(arguments))
    separator = arguments.index("--") if "--" in arguments else len(arguments)
    arguments, extra_args = arguments[:separator], arguments[separator + 1 :]
    if not asks_for_help and (not arguments or arguments[0].startswith("-")):
        print(
            f"{_PROGRAM}: error: the model comes first, its folder or hub id, such as "
            f"`{_PROGRAM} Qwen/Qwen2.5-Math-1.5B --port 8000`",
            file=sys.stderr,
        )
        raise SystemExit(2)
    own = arguments if asks_for_help else arguments[1:]
    recipe = parse_recipe((VLLMServerConfig,), own, __doc__ or "", f"{_PROGRAM} MODEL")
    config: VLLMServerConfig = recipe.instances[0]
    config.extra_args += extra_args
    return arguments[0], config


def _banner(server: VLLMServer) -> str:
    host = server.base_url.removeprefix("http://").rpartition(":")[0].strip("[]")
    lines = [f"Serving {server.model} at {server.base_url}, log in {server.log_path}"]
    if server.weight_transfer is not None:
        lines += [
            f"To train with it (weights by {server.weight_transfer}), in a recipe:",
            "  use_vllm: true",
            f"  vllm_server_host: {host}",
            f"  vllm_server_port: {server.port}",
        ]
    lines += [
        "To evaluate with it:",
        f"  trl-r1zero eval --model {server.model} --backend vllm_server "
        f"--server_url {server.base_url} ...",
        "Ctrl-C ends it. Its log from here:",
    ]
    return "\n".join(lines)


def _follow_log(server: VLLMServer) -> None:
    """Print what the server writes for as long as it runs."""
    with Path(str(server.log_path)).open(encoding="utf-8", errors="replace") as log:
        log.seek(0, 2)
        while True:
            alive = server.is_alive()  # before reading, so that the last words are read too
            print(log.read(), end="", flush=True)
            if not alive:
                return
            time.sleep(_POLL_SECONDS)
