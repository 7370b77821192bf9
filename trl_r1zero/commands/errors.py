"""How commands end when what they were given is wrong."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def exit_on(program: str, *kinds: type[Exception]) -> Iterator[None]:
    """End with status 2 and a message, for errors of these kinds: the program is not at fault."""
    try:
        yield
    except BrokenPipeError:  # of whoever reads the output
        raise
    except kinds as error:
        message = "\n".join([f"{program}: error: {error}", *vars(error).get("__notes__", [])])
        print(message, file=sys.stderr)
        raise SystemExit(2) from None
