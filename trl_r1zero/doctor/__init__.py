"""What would go wrong with a run, said before it starts: `trl-r1zero doctor`."""

from .findings import Finding, ok, problem, warning

__all__ = ["Finding", "ok", "problem", "warning"]
