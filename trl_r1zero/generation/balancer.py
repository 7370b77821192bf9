"""Which of several servers gets the next request."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Balancer:
    """Requests go to the server with the fewest unanswered ones, and not to one that is lost."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._unanswered = dict.fromkeys(urls, 0)
        self._lost: set[str] = set()
        self._lock = threading.Lock()  # batches are sent from threads of their own

    @property
    def alive(self) -> list[str]:
        """The servers that are not lost; at least one."""
        return [url for url in self._unanswered if url not in self._lost]

    @property
    def lost(self) -> list[str]:
        """The others."""
        return [url for url in self._unanswered if url in self._lost]

    @contextmanager
    def place(self) -> Iterator[str]:
        """The server for a request, while it has no answer."""
        with self._lock:
            url = min(self.alive, key=self._unanswered.__getitem__)
            self._unanswered[url] += 1
        try:
            yield url
        finally:
            with self._lock:
                self._unanswered[url] -= 1

    def lose(self, url: str) -> bool:
        """Take a server out; False if no other one is left, and it stays."""
        with self._lock:
            others = [one for one in self.alive if one != url]
            if others:
                self._lost.add(url)
            return bool(others)

    def take_back(self, url: str) -> None:
        """A lost server is there again."""
        self._lost.discard(url)
