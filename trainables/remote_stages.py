"""Stages in object storage, with the folders of this machine as a cache.

    stages/KIND/NAME/lease                 who runs the stage
    stages/KIND/NAME/unfinished            names the objects of the last checkpoint
    stages/KIND/NAME/DONE                  names the objects of the finished stage
    stages/KIND/NAME/objects/ID-FILE       those objects: written once, and never again

What names the objects is written when they are all there, and is one object itself: nobody sees a part of a checkpoint
or of a stage. `DONE` is created, never replaced, so that of two that finish a stage the first one counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from trainables.config import Config
from trainables.lease import one_at_a_time
from trainables.object_lease import PATIENCE_SECONDS, ObjectLease
from trainables.object_storage import Found, ObjectStorage, ObjectStorageError

LISTING = "uploaded.json"  # in a folder: the listing of the objects that it was written to, or read from

logger = logging.getLogger(__name__)


class DamagedObjectError(ObjectStorageError):
    """An object is not what was written."""


class StoredFile(Config):
    """A file of a stage as an object: `key` below the stage's own."""

    key: str
    num_bytes: int
    sha256: str


class Listing(Config):
    """The objects of a stage, or of its last checkpoint, by the names of their files."""

    files: dict[str, StoredFile]


class RemoteStages:
    """Stages below a URL. Its errors are ObjectStorageError, which is an OSError."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._storage = ObjectStorage(url)
        self._impatient = ObjectStorage(url, PATIENCE_SECONDS)  # while training waits

    def lease(self, place: str) -> ObjectLease:
        """That of the stage; `place` is its kind and name, as in all methods here."""
        return ObjectLease(self.url, f"stages/{place}/lease")

    def finished(self, place: str) -> Listing | None:
        """The files of the finished stage; None: it is not finished."""
        return _parsed(self.mark_of(place))

    def read(self, place: str, listing: Listing, name: str) -> bytes:
        """The content of a file of the stage. Raises FileNotFoundError when the stage has none of this name."""
        stored = listing.files.get(name)
        found = self._storage.read(_key(place, stored.key)) if stored else None
        if stored is None or found is None:
            raise FileNotFoundError(f"{self.url}/{_key(place, name)}: the stage has no such file")
        if hashlib.sha256(found.content).hexdigest() != stored.sha256:
            raise DamagedObjectError(f"{self.url}/{_key(place, stored.key)}: is not as it was written")
        return found.content

    def fetch(self, place: str, listing: Listing, folder: Path) -> None:
        """See to it that the folder has the files of the finished stage, and no others.

        Raises FileNotFoundError for an object that is gone, DamagedObjectError for one that is damaged.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder.parents[1] / ".fetching"):  # several workers of this machine want the same
            if _listing_of(folder) == listing and (folder / "DONE").is_file():
                return
            beside = folder.with_name(f".{folder.name}.fetching")  # which `study gc` leaves alone
            shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
            beside.mkdir()
            try:
                for name, stored in listing.files.items():
                    self._download(place, stored, beside / name)
                    if _sha256(beside / name) != stored.sha256:
                        raise DamagedObjectError(f"{self.url}/{_key(place, stored.key)}: is not as it was written")
                mark(beside, listing)
                shutil.rmtree(folder, ignore_errors=True)
                beside.rename(folder)
            finally:
                shutil.rmtree(beside, ignore_errors=True)

    def mark_of(self, place: str) -> Found | None:
        """What says that the stage is finished, whether or not that can be read."""
        return self._storage.read(_key(place, "DONE"))

    def publish(self, place: str, files: Iterable[Path], damaged: Found | None) -> Listing | None:
        """Make the files the finished stage, in the place of the damaged one. None: another one was first."""
        key = _key(place, "DONE")
        listing = Listing(files={path.name: self._upload(self._storage, place, path, ()) for path in files})
        content = listing.model_dump_json().encode()
        if damaged:
            self._storage.replace(key, content, damaged.version)
        else:
            self._storage.create(key, content)
        return listing if self.finished(place) == listing else None

    def tidy(self, place: str) -> None:
        """Delete what neither the finished stage nor its lease is. Nobody may be running the stage to its end."""
        finished = self.finished(place)
        self._impatient.delete(self._unneeded(place, finished))

    def leftovers(self) -> list[str]:
        """Objects of unfinished stages, leases that are held, and what belongs to nothing."""
        found: list[str] = []
        places = dict.fromkeys("/".join(key.split("/")[1:3]) for key in self._storage.list("stages"))
        for place in places:
            finished = self.finished(place)
            found += self._unneeded(place, finished)
            if self.lease(place).held_by_another():
                found.append(_key(place, "lease"))
        return [f"{self.url}/{key}" for key in sorted(found)]

    def measure(self) -> dict[str, dict[str, tuple[int, float]]]:
        """Of each stage, by its place: its objects' names, bytes, and when they were last written, in Unix time."""
        places: dict[str, dict[str, tuple[int, float]]] = {}
        for key, measured in self._storage.measure("stages").items():
            _, kind, *place = key.split("/", 3)
            if len(place) == 2:  # all that is written here
                places.setdefault(f"{kind}/{place[0]}", {})[place[1]] = measured
        return places

    def remove(self, place: str, is_needed: Callable[[], bool]) -> bool:
        """Delete the stage, finished or not, unless it is in use. Whether it went.

        `is_needed` is asked when nobody can see the stage any more. Whoever looks for it meanwhile sees that a worker
        has it, and waits.
        """
        lease = self.lease(place)
        lease.held_by_another()  # a dead holder's is given up
        with lease.hold() as held:
            if held is None:
                return False
            finished = self.mark_of(place)
            self._storage.delete([_key(place, "DONE")])
            needed = True
            try:
                needed = is_needed()
            finally:
                if needed and finished:
                    self._storage.create(_key(place, "DONE"), finished.content)
            if not needed:
                self.tidy(place)
        return not needed

    # ---- unfinished stages: only for the lease's holder ----------------------------------------------------------

    def save(self, place: str, folder: Path, lease: ObjectLease) -> None:
        """Upload the folder of an unfinished stage, after each checkpoint: files that have changed since the last time.

        Raises LeaseLostError, ObjectStorageError; what was uploaded before then counts.
        """
        before = _listing_of(folder)
        known = list(before.files.values()) if before else []
        paths = [path for path in sorted(folder.iterdir()) if path.name != LISTING and not path.name.startswith(".")]
        listing = Listing(files={path.name: self._upload(self._impatient, place, path, known) for path in paths})
        lease.confirm()
        self._impatient.write(_key(place, "unfinished"), listing.model_dump_json().encode())
        _write_listing(folder, listing)
        needed = {stored.key for stored in listing.files.values()}
        self._impatient.delete(_key(place, stored.key) for stored in known if stored.key not in needed)

    def take_up(self, place: str, folder: Path) -> None:
        """See to it that the folder holds the unfinished stage as it was left, here or on another machine.

        What is here counts when nobody has uploaded a checkpoint since: it may be newer. A file that is gone or damaged
        is left out; the checkpoint tells what can be used.
        """
        listing, here = _parsed(self._storage.read(_key(place, "unfinished"))), _listing_of(folder)
        if listing == here:
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, stored in listing.files.items() if listing else ():
            try:
                self._download(place, stored, folder / name)
            except FileNotFoundError as error:
                logger.warning("%s; training goes on without it", error)
                (folder / name).unlink(missing_ok=True)
        if listing:
            _write_listing(folder, listing)

    # ---- objects ---------------------------------------------------------------------------------------------------

    def _upload(self, storage: ObjectStorage, place: str, path: Path, known: Sequence[StoredFile]) -> StoredFile:
        """The file as an object: one of the known ones, where the content is the same, or else a new one."""
        digest = _sha256(path)
        for stored in known:
            if stored.sha256 == digest:
                return stored
        stored = StoredFile(
            key=f"objects/{uuid.uuid4().hex[:12]}-{path.name}", num_bytes=path.stat().st_size, sha256=digest
        )
        storage.write(_key(place, stored.key), path)
        return stored

    def _download(self, place: str, stored: StoredFile, path: Path) -> None:
        self._storage.download(_key(place, stored.key), path, stored.num_bytes)

    def _unneeded(self, place: str, finished: Listing | None) -> list[str]:
        """Keys of what the finished stage does not need, in the order in which they are to go: `unfinished` first."""
        needed = finished.files.values() if finished else ()
        keys = {_key(place, name) for name in ("lease", "DONE", *(stored.key for stored in needed))}
        return [key for key in reversed(self._storage.list(f"stages/{place}")) if key not in keys]


def mark(folder: Path, listing: Listing) -> None:
    """Mark the folder as that finished stage, complete."""
    _write_listing(folder, listing)
    (folder / "DONE").touch()


def _key(place: str, name: str) -> str:
    return f"stages/{place}/{name}"


def _parsed(found: Found | None) -> Listing | None:
    """The listing; None where there is none, or one that nobody can have written."""
    with contextlib.suppress(ValidationError):
        return Listing.model_validate_json(found.content) if found else None
    return None


def _listing_of(folder: Path) -> Listing | None:
    """The listing of the objects that the folder was last the same as, but for what has changed here since."""
    with contextlib.suppress(FileNotFoundError, ValidationError):
        return Listing.model_validate_json((folder / LISTING).read_bytes())
    return None


def _write_listing(folder: Path, listing: Listing) -> None:
    (folder / f".{LISTING}").write_bytes(listing.model_dump_json().encode())
    (folder / f".{LISTING}").replace(folder / LISTING)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
