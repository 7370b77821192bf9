"""A page to watch runs on: curves, settings, and answers question by question."""

from .page import RunPage, write_page

__all__ = ["RunPage", "write_page"]
