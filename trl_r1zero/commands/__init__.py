"""The commands of `trl-r1zero`: each is the module of its name, whose `main(argv)` runs it."""

__all__: list[str] = []
