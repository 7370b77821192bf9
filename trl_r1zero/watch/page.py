"""The page as one HTML file that needs nothing but itself, and who writes it while a run goes on.

Its scripts draw with uPlot (MIT license), which lies beside this module. Tables of answers are in
the file compressed, and read only when somebody looks at them.
"""

import base64
import gzip
import json
import logging
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from transformers import TrainerCallback

from trl_r1zero.common.run_files import METRICS_FILE
from trl_r1zero.evaluation.files import write_atomically
from trl_r1zero.evaluation.pages import TEMPLATES

from .run_data import answer_tables, answers, compact_json, run_data

logger = logging.getLogger(__name__)

PAGE_FILE = "index.html"
# Of compressed tables in one page; the newest come first, `trl-r1zero watch` has all.
MAX_TABLE_BYTES = 20_000_000

_ASSETS = Path(__file__).parent / "assets"
_PAGE = jinja2.Environment(
    loader=jinja2.FileSystemLoader([_ASSETS, TEMPLATES]),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
)


class RunPage(TrainerCallback):
    """Writes `index.html` into the run's folder at its logs and at each validation, and at the end
    the report too.

    Logs that follow fast are passed over, so that a run spends at most a twentieth of its time on
    its page. What cannot be written is a warning: a page is no reason to stop.
    """

    def __init__(self) -> None:
        self._due = 0.0

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.perf_counter() >= self._due:
            self._write(args, state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write(args, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from trl_r1zero.reports.report import write_report  # which imports what draws

        self._write(args, state, write_report)
        self._write(args, state)

    def _write(self, args: Any, state: Any, write: Callable[[Path], object] | None = None) -> None:
        folder = Path(args.output_dir or ".")
        if not state.is_world_process_zero or not (folder / METRICS_FILE).is_file():
            return
        start = time.perf_counter()
        try:
            (write or write_page)(folder)
        except (OSError, ValueError) as error:
            what = "report.md" if write else PAGE_FILE
            logger.warning("%s was not written: %s", folder / what, error)
        end = time.perf_counter()
        self._due = end + 20 * (end - start)


def write_page(folder: str | Path) -> Path:
    """Write `index.html` into a run's folder.

    Args:
        folder: The run's `output_dir`.

    Returns:
        Where the page is.

    Raises:
        FileNotFoundError: The folder has no metrics.
        ValueError: A file of it cannot be read.
    """
    folder = Path(folder)
    page = page_html([run_data(folder)], _packed_tables(folder))
    write_atomically(folder / PAGE_FILE, page.encode())
    return folder / PAGE_FILE


def page_html(
    runs: Sequence[dict[str, Any]], tables: dict[str, str] | None = None, *, served: bool = False
) -> str:
    """The page of some runs.

    Args:
        runs: What `run_data` says of each.
        tables: Answers of the first run: name of a table -> its rows as JSON, gzip and base64.
        served: Whether the page asks its server for news and for tables.
    """
    return _PAGE.get_template("page.html").render(
        title=", ".join(run["name"] for run in runs),
        data=Markup(compact_json({"runs": list(runs), "served": served})),
        tables=tables or {},
        **{name: Markup(_asset(file)) for name, file in _INLINE.items()},
    )


_INLINE = {
    "chart_css": "uPlot.min.css",
    "chart_js": "uPlot.iife.min.js",
    "page_css": "page.css",
    "page_js": "page.js",
}


@lru_cache
def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _packed_tables(folder: Path) -> dict[str, str]:
    packed, size = {}, 0
    for table in sorted(answer_tables(folder), key=lambda table: -table.step):
        changed = (folder / table.name).stat().st_mtime_ns
        text = _pack(folder, table, changed)
        size += len(text)
        if size > MAX_TABLE_BYTES:
            break
        packed[table.name] = text
    return packed


@lru_cache(maxsize=512)
def _pack(folder: Path, table: Any, changed: int) -> str:
    rows = json.dumps(answers(folder, table), separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(rows.encode(), mtime=0)).decode("ascii")
