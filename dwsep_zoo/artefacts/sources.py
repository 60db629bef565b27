"""Pictures that are named on a command line: files, folders, patterns, addresses, lists."""

from __future__ import annotations

import glob
import io
import ipaddress
import socket
import sys
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from PIL import Image

from dwsep_zoo.data.decode import as_rgb
from dwsep_zoo.data.listing import find_pictures, say_others
from dwsep_zoo.errors import UserError, first_line

MOST_BYTES = 32 * 2**20
TIMEOUT_S = 20
STDIN = "-"


def pictures_in(words: Iterable[str]) -> list[str]:
    """The pictures that words name, in order: files, all below folders, patterns, addresses.

    ``-`` stands for the picture, or the list of such words, on standard input.

    Raises:
        UserError: for a word that names nothing.
    """
    found: list[str] = []
    for word in words:
        path = Path(word).expanduser()
        if word == STDIN or is_address(word) or path.is_file():
            found.append(word if word == STDIN or is_address(word) else str(path))
        elif path.is_dir():
            below = find_pictures(path)
            if not below.names:
                raise UserError(f"{word}: a folder without pictures")
            say_others(path, below.others)
            found += [str(path / name) for name in below.names]
        elif matches := sorted(glob.glob(str(path), recursive=True)):
            found += pictures_in(matches)
        else:
            raise UserError(f"{word}: no such picture, folder or address")
    return found


def is_address(word: str) -> bool:
    return word.startswith(("http://", "https://"))


def from_stdin(file: BinaryIO | None = None) -> list[str] | Image.Image:
    """The picture on standard input, or the words of a list of pictures."""
    content = (file or sys.stdin.buffer).read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UserError(f"standard input: more than {MOST_BYTES:,} bytes")
    if not content:
        raise UserError("standard input is empty; it takes a picture, or a list of pictures")
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        return decoded(content, "standard input")
    return [line.strip() for line in lines if line.strip()]


def decoded(content: bytes, what: str) -> Image.Image:
    """The picture as it is, which can be read; raises UserError for what is not a picture."""
    try:
        image = Image.open(io.BytesIO(content))
        as_rgb(image)
        return image
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    # Pillow's readers raise errors of many kinds for damaged files.
    except Exception as error:
        raise UserError(f"{what}: not a picture that Pillow reads") from error


def download(address: str, *, private: bool = False) -> Image.Image:
    """Get a picture from a server.

    Args:
        address: of http or https.
        private: let servers of this machine and of its network be asked.

    Raises:
        UserError: for another kind of address, also behind a redirection, an answer that is too
            large, late, or no picture.
    """
    opener = build_opener(_Redirects(private))
    _check(address, private)
    try:
        request = Request(address, headers={"User-Agent": "dwsep_zoo"})
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            content = answer.read(MOST_BYTES + 1)
    except UserError:
        raise
    except (URLError, OSError, ValueError, HTTPException) as error:
        raise UserError(f"{address}: cannot be downloaded ({first_line(error)})") from error
    if len(content) > MOST_BYTES:
        raise UserError(f"{address}: more than {MOST_BYTES:,} bytes")
    return decoded(content, address)


class _Redirects(HTTPRedirectHandler):
    """Follows a redirection only to what could have been asked for."""

    def __init__(self, private: bool):
        self.private = private

    def redirect_request(self, *arguments: Any) -> Request | None:
        _check(arguments[-1], self.private)
        return super().redirect_request(*arguments)


def _check(address: str, private: bool) -> None:
    """Raises UserError unless the host is known and, by default, all its addresses are public."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"{address}: not an address ({error})") from error
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"{address}: not an address of http or https")
    try:
        found = socket.getaddrinfo(host, port or 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"{address}: the host {host} is not known") from error
    hosts = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not private and not all(one.is_global for one in hosts):
        raise UserError(
            f"{address}: is of this machine or its network; private=true lets it be asked"
        )
