"""Objects in a bucket: of S3 or a server that speaks its language, of Google's or of Azure's storage.

An object is there as a whole or not at all. It can be created only where there is none, and replaced only where it is
still the one that was read: leases and commits rest on that, for buckets know no rename and no lock.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs", "az")
INSTALL = "pip install 'asr-scaling-studies[object-storage]'"
PATIENCE_SECONDS = 120.0  # for storage that is away
REQUEST_SECONDS = 30.0
PART_BYTES = 32 * 2**20  # of a download; several parts at a time
PARTS_AT_A_TIME = 8
_URL = re.compile(rf"(?P<scheme>{'|'.join(SCHEMES)})://(?P<bucket>[\w.-]+)(/[^?#@]*)?")


class ObjectStorageError(OSError):
    """The storage cannot be reached, refuses, or is not as it should be."""


@dataclass(frozen=True)
class Found:
    """An object: its content, and what tells this version of it from others."""

    content: bytes
    version: Any


def checked_url(url: str) -> str:
    """The URL without a slash at its end. Raises ValueError for one that is none of a bucket, or holds secrets."""
    if "@" in url or "?" in url:
        raise ValueError(
            "must be a URL without credentials or options; give those in the environment (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL), or the machines a role that may use the bucket"
        )
    if not _URL.fullmatch(url):
        raise ValueError(f"must be the URL of a bucket, such as s3://bucket/prefix (or gs://, az://), got {url!r}")
    return url.rstrip("/")


class ObjectStorage:
    """The objects below a URL, by their keys. What fails raises ObjectStorageError, after trying again for a while.

    Not for a process that was forked from one that has used any: the first use starts threads.
    """

    def __init__(self, url: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.url = checked_url(url)
        self._patience_seconds = patience_seconds

    @functools.cached_property
    def _bucket(self) -> ObjectStore:
        try:
            from obstore.store import from_url
        except ImportError as error:
            raise ObjectStorageError(f"{self.url}: a package is missing; {INSTALL}") from error
        allow_http = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http:")
        return from_url(
            self.url,
            retry_config={
                "max_retries": 1000,
                "retry_timeout": timedelta(seconds=self._patience_seconds),
                "backoff": {
                    "init_backoff": timedelta(seconds=0.2),
                    "max_backoff": timedelta(seconds=3),
                    "base": 2,
                },
            },
            client_options={
                "timeout": timedelta(seconds=REQUEST_SECONDS),
                "connect_timeout": timedelta(seconds=5),
                "allow_http": allow_http,
            },
        )

    def read(self, key: str) -> Found | None:
        """The object; None when there is none."""
        import obstore

        with self._explained(key):
            try:
                result = obstore.get(self._bucket, key)
                meta = result.meta
                return Found(bytes(result.bytes()), _version(meta))
            except FileNotFoundError:
                return None

    def write(self, key: str, content: bytes | Path) -> None:
        """Write the content, or the file, in the place of what was there."""
        import obstore

        with self._explained(key):
            obstore.put(self._bucket, key, content)

    def create(self, key: str, content: bytes) -> Any:
        """Write the object where there is none. Its version; None where there is one.

        An answer may be lost: whoever must know whether the object is his reads it.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._explained(key):
            try:
                return _version(obstore.put(self._bucket, key, content, mode="create"))
            except AlreadyExistsError:
                return None

    def replace(self, key: str, content: bytes, version: Any) -> Any:
        """Write the object where it is still of this version. Its new version; None where it is another, or gone.

        As with `create`, an answer may be lost.
        """
        import obstore
        from obstore.exceptions import PreconditionError

        with self._explained(key):
            try:
                return _version(obstore.put(self._bucket, key, content, mode=version))
            except (PreconditionError, FileNotFoundError):
                return None

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the objects; those that are gone already, too."""
        import obstore

        for key in keys:  # one by one: some servers know no other way
            with self._explained(key), contextlib.suppress(FileNotFoundError):
                obstore.delete(self._bucket, key)

    def list(self, folder: str) -> list[str]:
        """The keys below the folder, at any depth."""
        import obstore

        with self._explained(folder):
            return sorted(found["path"] for some in obstore.list(self._bucket, folder) for found in some)

    def measure(self, folder: str) -> dict[str, tuple[int, float]]:
        """Of each object below the folder: bytes, and when it was last written, in Unix time."""
        import obstore

        with self._explained(folder):
            every = [found for some in obstore.list(self._bucket, folder) for found in some]
        return {found["path"]: (found["size"], found["last_modified"].timestamp()) for found in every}

    def download(self, key: str, path: Path, num_bytes: int) -> None:
        """Write the object to a new file, in parts of which several come at a time.

        Raises FileNotFoundError when there is no such object.
        """
        import obstore

        def part(start: int) -> None:
            length = min(PART_BYTES, num_bytes - start)
            content = obstore.get_range(self._bucket, key, start=start, length=length)
            os.pwrite(file.fileno(), content, start)

        with self._explained(key, absent_is_an_error=False), path.open("wb") as file:
            with ThreadPoolExecutor(PARTS_AT_A_TIME) as pool:
                for _ in pool.map(part, range(0, num_bytes, PART_BYTES)):
                    pass
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def _explained(self, key: str, *, absent_is_an_error: bool = True) -> Iterator[None]:
        """Errors of the library as ours, with the URL and what can be done."""
        from obstore import exceptions

        try:
            yield
        except FileNotFoundError as error:
            if not absent_is_an_error:
                raise FileNotFoundError(f"{self.url}/{key}: there is no such object") from None
            raise ObjectStorageError(f"{self.url}: there is no such bucket; make it first") from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise ObjectStorageError(
                f"{self.url}: may not be used ({_first_line(error)}); give credentials that may read, write, list and "
                "delete there in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), or the machine such a role"
            ) from error
        except exceptions.BaseError as error:
            raise ObjectStorageError(f"{self.url}: {_first_line(error)}") from error


def storage_problem(url: str, patience_seconds: float = 10.0) -> str | None:
    """Why this machine cannot keep stages there; None when it can. Writes a small object, and deletes it."""
    storage, key = ObjectStorage(url, patience_seconds), f".probe-{uuid.uuid4().hex}"
    try:
        first = storage.create(key, b"first")
        unconditional = storage.create(key, b"second") is not None
        second = storage.replace(key, b"third", first)
        unconditional = unconditional or second is None or storage.replace(key, b"fourth", first) is not None
        found = storage.read(key)
        listed = key in storage.list("")
        storage.delete([key])
    except OSError as error:
        return str(error)
    if unconditional or found is None or found.content != b"third" or not listed:
        return f"{storage.url}: writes although another object is there (If-None-Match, If-Match); take a newer server"
    return None


def _version(result: Any) -> dict[str, str]:
    return {name: result[name] for name in ("e_tag", "version") if result[name] is not None}


def _first_line(error: BaseException) -> str:
    """What the server answered, without the library's description of its own state."""
    line = str(error).strip().splitlines()[0]
    return line if len(line) <= 300 else f"{line[:300]} ..."
