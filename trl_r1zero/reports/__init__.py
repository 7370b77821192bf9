"""Reports of runs: one run, and groups of seeds side by side."""

__all__: list[str] = []
