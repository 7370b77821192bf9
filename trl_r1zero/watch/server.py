"""Serves the page of some runs to this machine, with what they have written since."""

import gzip
import json
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .page import page_html
from .run_data import answer_tables, answers, compact_json, run_data

HOST = "127.0.0.1"


class PageServer(ThreadingHTTPServer):
    """Listens on the loopback interface alone.

    Args:
        folders: Of the runs.
        port: 0: any free one.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, folders: Sequence[Path], port: int = 0) -> None:
        self.folders = list(folders)
        super().__init__((HOST, port), _Handler)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/"

    def runs(self) -> list[dict[str, Any]]:
        return [run_data(folder) for folder in self.folders]

    def table(self, number: str, name: str) -> list[dict[str, Any]] | None:
        """The rows of a table of a run, by the names that the page was given; None for others."""
        if not (number.isdigit() and int(number) < len(self.folders)):
            return None
        folder = self.folders[int(number)]
        known = (table for table in answer_tables(folder) if table.name == name)
        table = next(known, None)
        return None if table is None else answers(folder, table)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        # A web page that is open elsewhere could reach this one under a name of its own.
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host not in (HOST, "localhost"):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", f"open {self.server.url}")
            return
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        try:
            self._answer(url.path, query)
        except (ValueError, OSError) as error:  # a file that is being written, or is none of ours
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", str(error))

    def _answer(self, path: str, query: dict[str, str]) -> None:
        if path == "/":
            self._send(HTTPStatus.OK, "text/html", page_html(self.server.runs(), served=True))
        elif path == "/runs":
            self._send(HTTPStatus.OK, "application/json", compact_json(self.server.runs()))
        elif path == "/table":
            rows = self.server.table(query.get("run", ""), query.get("name", ""))
            if rows is not None:
                self._send(HTTPStatus.OK, "application/json", json.dumps(rows, allow_nan=False))
                return
            self._send(HTTPStatus.NOT_FOUND, "text/plain", "there is no such table")
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", "there is no such page")

    def _send(self, status: HTTPStatus, content_type: str, text: str) -> None:
        content = gzip.compress(text.encode(), compresslevel=1)
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{content_type}; charset=utf-8",
            "Content-Encoding": "gzip",
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a request every other second is no news."""
