"""HTTP to a server: proxies, the words of an error, and how many connections a process may have."""

import contextlib
import ipaddress
import json
import os
import resource

import requests

CONNECT_TIMEOUT_SECONDS = 10.0
# For what else opens files meanwhile: the event loop, name look-ups, logs, the pool that grades.
_SPARE_FILES = 32


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def new_session(use_proxies: bool = False) -> requests.Session:
    """A session; proxies in the environment lead to other machines, not to one's own server."""
    session = requests.Session()
    session.trust_env = use_proxies
    return session


def is_healthy(base_url: str, timeout_seconds: float) -> bool:
    """Whether a vLLM server says that it can take requests."""
    try:
        with new_session() as session:
            return session.get(f"{base_url}/health", timeout=timeout_seconds).status_code == 200
    except requests.RequestException:
        return False


def error_message(text: str) -> str:
    """The reason in the body of a refusal: in the usual forms of an error, or the body itself."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        error = json.loads(text)["error"]
        text = error["message"] if isinstance(error, dict) else str(error)
    return " ".join(str(text).split())[:1000] or "no reason given"


def room_for_connections(wanted: int) -> int:
    """How many of `wanted` connections this process can have open at once; may be below 1.

    The usual soft limit on open files (1,024) is too low for a rollout batch: it is raised as far
    as the connections need and the hard limit allows, never lowered.
    """
    used = len(os.listdir("/dev/fd")) + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and used + wanted > soft:
        needed = used + wanted if hard == resource.RLIM_INFINITY else min(used + wanted, hard)
        # macOS has a bound besides, below which it reports no hard limit: then the soft one stays.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - used)


def open_files_hint() -> str:
    """The limit on open files, and what to do about it."""
    soft, hard = (
        "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    return (
        f"this process may have {soft} files open (`ulimit -n`; the hard limit, `ulimit -Hn`, is "
        f"{hard}), and they are used up; raise the limit, or close what else is open"
    )
