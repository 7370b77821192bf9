"""Experiments: grids of runs over seeds."""

__all__: list[str] = []
