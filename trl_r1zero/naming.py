"""One wording for a name that is not known: what was got, the nearest name, all allowed names."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["did_you_mean", "unknown_name_message"]


def did_you_mean(got: object, allowed: Iterable[str]) -> str:
    """Returns `; did you mean 'math'?`, or nothing where no allowed name is near."""
    nearest = get_close_matches(str(got), list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def unknown_name_message(kind: str, got: object, allowed: Iterable[str]) -> str:
    """Returns e.g. `unknown task 'mat'; did you mean 'math'? Allowed: countdown, gsm8k, math.`"""
    names = sorted(allowed)
    suggestion = did_you_mean(got, names) or ";"
    return f"unknown {kind} {got!r}{suggestion} Allowed: {', '.join(names) or '(none)'}."
