"""Archives from the network: mirrors, checksum, resume, and nothing incomplete in its place."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from dwsep_zoo.data.progress import progress
from dwsep_zoo.errors import UserError

log = logging.getLogger("dwsep_zoo")

TIMEOUT_S = 30
BLOCK = 1 << 18


def fetch(urls: Sequence[str], path: Path, md5: str | None) -> Path:
    """Return ``path`` when it holds the archive with this checksum, downloaded if necessary.

    The urls are tried in order. Data goes to ``<path>.part``, from where an interrupted download is
    continued, by this call or a later one and from any url, as all serve the same bytes. The file
    is renamed when its checksum is right.

    Args:
        urls: ``https://``, ``http://``, ``file://`` or a path.
        path: place of the archive.
        md5: its checksum, hexadecimal; ``None``: there is none, and the length alone is checked.

    Raises:
        UserError: in one line with every url and its failure, or the folder that is not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            return _fetch(urls, path, md5)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {_reason(error)}; set paths.data_dir= to another place"
        ) from error


def _fetch(urls: Sequence[str], path: Path, md5: str | None) -> Path:
    if path.exists():
        if md5 in (None, _md5(path)):
            return path
        log.warning("%s has a wrong checksum and is downloaded again", path)
    part, problems = Path(f"{path}.part"), []
    for url in map(_as_url, urls):
        try:
            _download(url, part, md5)
        except (OSError, http.client.HTTPException, _WrongChecksum, ValueError) as error:
            problems.append(f"{url} ({_reason(error)})")
            continue
        os.replace(part, path)
        return path
    raise UserError(
        f"could not download {path.name} from {', '.join(problems)}; set data.url= to a place that "
        "has it (file:// works) or data.root= to a folder that has it"
    )


def extract(archive: Path, folder: str, root: Path) -> None:
    """Unpack ``folder`` of a .tar or .zip archive into ``root`` completely, or raise UserError."""
    with FileLock(f"{archive}.lock"):
        if (root / folder).is_dir():
            return
        log.info("unpacking %s", archive)
        prefix = f".unpacking-{folder}."  # a dot, as imagenette2 begins imagenette2-160 too
        for left in root.glob(f"{prefix}*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        try:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as packed:
                    packed.extractall(work)  # never outside of it
            else:
                with tarfile.open(archive) as tar:
                    tar.extractall(work, filter="data")
            os.replace(work / folder, root / folder)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise UserError(f"cannot unpack {folder} from {archive}: {_reason(error)}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)


class _WrongChecksum(Exception):
    pass


def _download(url: str, part: Path, md5: str | None) -> None:
    """Complete ``part`` from one url.

    A connection that is cut is opened again while each brings some bytes. Bytes of an earlier
    download may be wrong: if the checksum fails, they are dropped and the download starts again.
    """
    found = part.exists()
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            complete = _transfer(url, part, before)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not before:
                raise
            complete = True  # nothing is missing
        if not complete:
            if part.stat().st_size <= before:
                raise ConnectionError("the connection was cut")
            log.info("the connection was cut after %d bytes; resuming", part.stat().st_size)
            continue
        if md5 in (None, _md5(part)):
            return
        part.unlink()
        if not found:
            raise _WrongChecksum("wrong checksum")
        found = False
        log.info("the rest of an earlier download is wrong; starting again")


def _transfer(url: str, part: Path, start: int) -> bool:
    """Append the bytes from ``start``, or all if the server has no ranges; True if complete."""
    request = urllib.request.Request(url, headers={"User-Agent": "dwsep_zoo"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        if getattr(response, "status", None) != 206:
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        title = f"downloading {url}"
        with (
            part.open("r+b" if start else "wb") as file,
            progress(title, total, done=start, is_bytes=True) as advance,
        ):
            file.seek(start)
            done = start
            try:
                while block := response.read(BLOCK):
                    file.write(block)
                    done += len(block)
                    advance(len(block))
            except (http.client.HTTPException, ConnectionError, TimeoutError):
                return False
    return total is None or done >= total


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _as_url(url: str) -> str:
    return url if "://" in url else Path(url).expanduser().absolute().as_uri()


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    if isinstance(error, urllib.error.URLError):
        error = error.reason if isinstance(error.reason, Exception) else error
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
