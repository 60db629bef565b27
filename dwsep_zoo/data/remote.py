"""Files on other servers, by fsspec: http(s), hf, s3, gs and further protocols of that library."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from dwsep_zoo.errors import UserError
from dwsep_zoo.schema.texts import has_secret

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

log = logging.getLogger("dwsep_zoo")

TRIES = 5
WAIT_S = 1.0
"""Before the second try; doubled for each further one."""
CONNECTIONS = 16
"""Requests at once of each worker process."""
SILENCE_S = 20
"""A server that sends nothing for so long counts as failed."""
LATER = (408, 429)
"""HTTP's errors of a request that may be answered later; others of 400 to 499 are final."""

_systems: dict[tuple[int, str], AbstractFileSystem] = {}
"""By process and URL. A forked process keeps its parent's, as their end would close sockets that
the parent still uses."""


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


def is_remote(root: str) -> bool:
    """Whether a place is a URL."""
    return "://" in root


class Remote:
    """Files below a URL. Worker processes have copies of it.

    What fails is tried again for a while.

    Attributes:
        url: of the folder.

    Raises:
        UserError: for a URL that is none, of a protocol that does not exist or needs a package, or
            with a secret, which the records of runs would show.
    """

    def __init__(self, url: str):
        self.url = _checked(url)
        self._system()

    def place(self, name: str) -> str:
        """The URL of a file."""
        return f"{self.url}/{name}"

    def whole(self, name: str) -> bytes:
        """A file; raises UserError if it cannot be read."""
        return self._patiently(self.place(name), lambda: self._bytes(name), set())

    def parts(self, wanted: Sequence[Part]) -> list[bytes]:
        """Many parts at once; raises UserError if one of them cannot be read."""
        said: set[int] = set()

        def read(part: Part) -> bytes:
            return self._patiently(
                self.place(part.name), lambda: self._bytes(part.name, part), said
            )

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(read, wanted))  # the first error cancels those that wait

    def _patiently(self, place: str, read: Callable[[], bytes], said: set[int]) -> bytes:
        """Read, and try again.

        Args:
            place: of the file, as messages name it.
            read: does it.
            said: tries whose failure was logged already, for another part.
        """
        for tried in range(1, TRIES + 1):
            try:
                return read()
            except FileNotFoundError as error:
                raise UserError(f"cannot read {place}: there is no such file") from error
            except Exception as error:  # each protocol's library raises its own
                reason = " ".join(str(error).split()) or type(error).__name__
                if tried == TRIES or _is_final(error):
                    raise UserError(f"cannot read {place}: {reason}") from error
            wait = WAIT_S * 2 ** (tried - 1)
            if tried not in said:
                said.add(tried)
                log.warning("%s: %s; trying again in %g s", place, reason, wait)
            time.sleep(wait)
        raise AssertionError  # the last try returns or raises

    def _bytes(self, name: str, part: Part | None = None) -> bytes:
        system = self._system()
        # No read-ahead of megabytes where a file system opens the file for a part.
        options = {} if system.async_impl else {"cache_type": "none"}
        if part is None:
            whole: bytes = system.cat_file(self.place(name))
            return whole
        end = part.first + part.length
        found: bytes = system.cat_file(self.place(name), start=part.first, end=end, **options)
        if len(found) > part.length:
            raise WholeFile("the server sends whole files instead of parts (HTTP ranges)")
        if len(found) < part.length:
            raise OSError(f"the server sent {len(found):,} bytes of {part.length:,}")
        return found

    def _system(self) -> AbstractFileSystem:
        key = os.getpid(), self.url
        if key not in _systems:
            _systems[key] = _opened(self.url)
        return _systems[key]


class WholeFile(Exception):
    """The server did not do what was asked for, and will not another time."""


def _is_final(error: Exception) -> bool:
    status = getattr(error, "status", None)
    client = isinstance(status, int) and 400 <= status < 500 and status not in LATER
    return client or isinstance(error, WholeFile)


def _checked(url: str) -> str:
    """The URL without its last slashes; raises UserError for one that cannot be used."""
    scheme, _, rest = url.partition("://")
    try:
        found = urlsplit(url)
        secret = has_secret(url)
    except ValueError as error:
        raise UserError(f"data.root={url} is no URL: {error}") from error
    if not rest.strip("/") or "::" in url:
        raise UserError(f"data.root={url} is not the URL of a folder")
    if secret or (scheme.startswith("http") and (found.query or found.fragment)):
        raise UserError(
            f"data.root=: a URL, here of {found.hostname}, may have no user name, password, query "
            "or fragment, as every run records it; keep passwords in ~/.netrc"
        )
    return url.rstrip("/")


def _opened(url: str) -> AbstractFileSystem:
    """fsspec's system for a URL."""
    from fsspec.core import url_to_fs

    options: dict[str, object] = {}
    if url.startswith(("http://", "https://")):
        from aiohttp import ClientTimeout

        silence = ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)
        # trust_env: proxies and ~/.netrc
        options["client_kwargs"] = {"timeout": silence, "trust_env": True}
        # Parts of a compressed answer are not those of the file.
        options["headers"] = {"Accept-Encoding": "identity"}
    try:
        return url_to_fs(url, **options)[0]
    except Exception as error:  # each protocol's library raises its own
        reason = " ".join(str(error).split())
        raise UserError(f"data.root={url} cannot be read: {reason}") from error
