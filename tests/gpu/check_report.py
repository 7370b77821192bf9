"""What the GPU check writes: one JSON and one table, anew after every part."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from check_running import FAILED, TIMED_OUT, PartResult

SCHEMA_VERSION = 1
JSON_FILE = "gpu_check.json"
TABLE_FILE = "gpu_check.md"


def exit_status(results: Sequence[PartResult]) -> int:
    """1 if a part failed or was too late, else 0."""
    return int(any(result.status in (FAILED, TIMED_OUT) for result in results))


def write_report(
    folder: Path, about: Mapping[str, Any], results: Sequence[PartResult], planned: Sequence[str]
) -> None:
    """Write both files; a reader never sees half of one.

    Args:
        folder: Where.
        about: What the check ran on.
        results: Of the parts so far.
        planned: The names of all parts; `finished` says whether there is a result of each.
    """
    report = {
        "schema_version": SCHEMA_VERSION,
        **about,
        "planned": list(planned),
        "finished": len(results) == len(planned),
        "parts": [asdict(result) for result in results],
    }
    replace_text(folder / JSON_FILE, json.dumps(report, indent=2) + "\n")
    replace_text(folder / TABLE_FILE, table(about, results) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(path.suffix + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def table(about: Mapping[str, Any], results: Sequence[PartResult]) -> str:
    """The results in Markdown."""
    packages = about["packages"]
    versions = ", ".join(
        f"{name} {packages.get(name, 'not installed')}"
        for name in ("torch", "vllm", "transformers", "trl")
    )
    driver = f", driver {about['driver']}" if about.get("driver") else ""
    lines = [
        f"{about['device_name']}{driver}; model shape {about['model_shape']}; {versions}; commit "
        f"{about['commit'] or 'unknown'}; {about['started']}.",
        "",
        "| part | what | status | seconds | figures |",
        "| --- | --- | --- | ---: | --- |",
    ]
    for result in results:
        said = "; ".join(text for text in (result.summary, result.reason) if text)
        lines.append(
            f"| {result.name} | {result.title} | {result.status.replace('_', ' ')} "
            f"| {result.seconds:.0f} | {_cell(said)} |"
        )
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
