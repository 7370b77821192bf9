"""What becomes of rows that cannot be used, as recipes say it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from trl_r1zero.common.arguments import arg
from trl_r1zero.data.bad_rows import BadRows


@dataclass
class RowArguments:
    """Of every recipe that reads rows."""

    on_bad_row: Literal["error", "skip"] = arg(
        "error",
        "Rows that cannot be used (an empty answer, a prompt that leaves no room for a completion, "
        "...): error names them, skip leaves them out and counts them.",
        kw_only=True,
    )

    @cached_property
    def skipped_rows(self) -> dict[str, dict[str, Any]]:
        """Key of a data set that was read -> `BadRows.facts`, where rows of it were left out."""
        return {}

    @contextmanager
    def reading(self, key: str, source: str | None) -> Iterator[BadRows]:
        """The bad rows of a data set, which `on_bad_row` decides about at the end of the `with`."""
        bad_rows = BadRows(self.on_bad_row, f"{key} ({source})" if source else key)
        yield bad_rows
        bad_rows.finish()
        if bad_rows.errors:
            self.skipped_rows[key] = bad_rows.facts()
