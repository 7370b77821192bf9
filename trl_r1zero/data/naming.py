"""One wording for "this name is not known": what was got, the nearest name, all allowed names."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["unknown_name_message"]


def unknown_name_message(kind: str, got: str, allowed: Iterable[str]) -> str:
    """Returns e.g. `unknown task 'mat'; did you mean 'math'? Allowed: countdown, gsm8k, math.`"""
    names = sorted(allowed)
    nearest = get_close_matches(str(got), names, n=1, cutoff=0.5)
    suggestion = f" did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {kind} {got!r};{suggestion} Allowed: {', '.join(names) or '(none)'}."
