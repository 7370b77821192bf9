"""What all layers use: names, settings' fields, calls of all processes."""

__all__: list[str] = []
