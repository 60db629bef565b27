"""Parts of files on other servers, by any protocol of fsspec: http(s), hf, s3, gs and others."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from dwsep_zoo.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsspec import AbstractFileSystem

log = logging.getLogger("dwsep_zoo")

TRIES = 5
CONNECTIONS = 16
"""Requests at once of each worker process."""
SILENCE_S = 60
"""A server that sends nothing for so long counts as failed."""


def is_remote(root: str) -> bool:
    """Whether a place is a URL."""
    return "://" in root


class Part(NamedTuple):
    """Bytes of a file.

    Attributes:
        name: of the file.
        first: byte.
        length: in bytes.
    """

    name: str
    first: int
    length: int


class Remote:
    """Files below a URL. Worker processes have copies of it.

    Attributes:
        url: of the folder.
        wait_s: seconds before the second try, doubled for each further one.

    Raises:
        UserError: for a protocol that does not exist or needs a package, or a password in the URL,
            which records of runs would show.
    """

    def __init__(self, url: str):
        if "@" in urlsplit(url).netloc:
            raise UserError(
                f"data.root= has a user's name or password for {urlsplit(url).hostname}; put it "
                "into ~/.netrc, where it stays out of records"
            )
        self.url = url.rstrip("/")
        self.wait_s = 1.0
        self._system()

    def place(self, name: str) -> str:
        """The URL of a file."""
        return f"{self.url}/{name}"

    def whole(self, name: str) -> bytes:
        """A file; raises UserError if it cannot be read."""
        with self._failure(self.place(name)):
            content: bytes = self._system().cat_file(self.place(name))
            return content

    def check_parts(self, name: str) -> None:
        """Raises UserError if the server answers with the whole file when a part is asked for."""
        with self._failure(self.place(name)):
            found = self._system().cat_file(self.place(name), start=0, end=1)
        if len(found) != 1:
            raise UserError(f"{self.url}: the server cannot send parts of files (HTTP ranges)")

    def sizes(self, names: Sequence[str]) -> list[int]:
        """Lengths of files in bytes; raises UserError if one is not there."""
        with self._failure(self.url):
            system = self._system()
            return list(system.sizes([self.place(name) for name in names], **_at_once(system)))

    def parts(self, wanted: Sequence[Part]) -> list[bytes | UserError]:
        """Many parts at once, or why one cannot be read. What fails is tried again for a while."""
        found: dict[int, bytes | Exception] = {}
        left, wait = list(range(len(wanted))), self.wait_s
        for tried in range(1, TRIES + 1):
            found.update(zip(left, self._once([wanted[i] for i in left]), strict=True))
            left = [i for i in left if isinstance(found[i], Exception)]
            left = [i for i in left if not isinstance(found[i], FileNotFoundError)]
            if not left or tried == TRIES:
                break
            log.warning(
                "%d of %d pictures could not be read from %s (%s): trying again in %g s",
                len(left),
                len(wanted),
                self.url,
                _reason(found[left[0]]),
                wait,
            )
            time.sleep(wait)
            wait *= 2
        return [
            content if isinstance(content, bytes) else self._error(self.place(part.name), content)
            for part, content in zip(wanted, (found[i] for i in range(len(wanted))), strict=True)
        ]

    def _once(self, wanted: Sequence[Part]) -> list[bytes | Exception]:
        names = [self.place(part.name) for part in wanted]
        firsts = [part.first for part in wanted]
        ends = [part.first + part.length for part in wanted]
        system = self._system()
        found = system.cat_ranges(names, firsts, ends, on_error="return", **_at_once(system))
        return list(found)

    def _system(self) -> AbstractFileSystem:
        """fsspec's own, which it makes anew in each process."""
        from fsspec.core import url_to_fs

        options: dict[str, object] = {}
        if self.url.startswith(("http://", "https://")):
            from aiohttp import ClientTimeout

            silence = ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)
            # trust_env: proxies and ~/.netrc
            options["client_kwargs"] = {"timeout": silence, "trust_env": True}
        with self._failure(self.url):
            return url_to_fs(self.url, **options)[0]

    @contextmanager
    def _failure(self, place: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # each protocol's library raises its own
            raise self._error(place, error) from error

    def _error(self, place: str, error: Exception) -> UserError:
        return UserError(f"cannot read {place}: {_reason(error)}")


def _at_once(system: AbstractFileSystem) -> dict[str, int]:
    """The limit of requests, for systems that send several."""
    return {"batch_size": CONNECTIONS} if system.async_impl else {}


def _reason(error: object) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return " ".join(str(error).split()) or type(error).__name__
