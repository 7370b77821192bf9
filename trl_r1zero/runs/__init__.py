"""Runs as their folders tell of them: settings, metrics, how they ended."""

__all__: list[str] = []
