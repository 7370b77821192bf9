"""The limit on the files that this process may have open; each connection is one."""

import contextlib
import os
import resource

# For what else opens files meanwhile: the event loop, name look-ups, logs, the pool that grades.
_SPARE_FILES = 32


def room_for_connections(wanted: int) -> int:
    """How many of `wanted` connections this process can have open at once; may be below 1.

    The usual soft limit (1,024) is too low for a rollout batch, and any process may raise its own
    up to the hard limit: it is raised as far as the connections need, never lowered.
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


def limit_in_words() -> str:
    """The limit, and what to do about it."""
    soft, hard = (
        "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    return (
        f"this process may have {soft} files open (`ulimit -n`; the hard limit, `ulimit -Hn`, is "
        f"{hard}), and they are used up; raise the limit, or close what else is open"
    )
