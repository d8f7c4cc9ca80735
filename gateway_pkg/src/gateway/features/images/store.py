"""Files that the gateway made for clients to fetch: stored under the sha256 of their bytes, for a while, up to a total.

The name is all that opens one: nobody guesses it who has not the bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import tempfile
import threading
import time
from collections import Counter, defaultdict, deque
from pathlib import Path

from gateway import background
from gateway.backends.protocols.image_formats import MEDIA_TYPES
from gateway.features.images.settings import ImageSettings

log = logging.getLogger(__name__)

SWEEP_MAX_SEC = 60.0
PART = ".part-"  # begins the name of a file that is being written
# Those of the earlier system, too: unix time, 16 hex digits. And what a process was writing when it was killed.
_NAME = re.compile(rf"(?:[0-9a-f]{{64}}|[0-9]+_[0-9a-f]{{16}})\.[a-z0-9]{{1,5}}|{re.escape(PART)}\w+")
_STEM = re.compile(r"[0-9a-f]{64}")


class MediaStore(background.Worker):
    """A directory of files below the settings' total: the oldest of the owner who has most go first, each when it is
    `ttl_sec` old. Owners are known of files that this process has stored; the others have one owner together.

    MEDIA_TYPES are those that are served, by suffix. A file is whole or not there; nothing is done on the loop.
    Between `start` and `stop` it removes what has become too old.
    """

    task = "media_sweep"

    def __init__(self, settings: ImageSettings) -> None:
        self.ttl_sec = settings.ui_image_ttl_sec
        self._directory = settings.ui_image_dir
        self._max_bytes = settings.ui_image_max_bytes
        self._max_total_bytes = settings.ui_image_total_bytes
        self._lock = threading.Lock()
        self._total: int | None = None  # bytes in the directory, once it was read
        self._owners: dict[str, str] = {}  # by a file's name; at most as many as there are files
        self.problem: str | None = None  # why the last file is not stored

    async def save(self, data: bytes, suffix: str, owner: str = "") -> str:
        """Stores a file and returns its name; raises OSError, also for a file that is larger than one may be.

        The same bytes are one file: its first owner's, young again.
        """
        return await asyncio.to_thread(self._save, data, suffix, owner)

    async def find(self, name: str) -> Path | None:
        """The path of a stored file; None for an unknown or expired name."""
        stem, _, suffix = name.partition(".")
        if not _STEM.fullmatch(stem) or suffix not in MEDIA_TYPES:
            return None
        return await asyncio.to_thread(self._find, name)

    async def _work(self) -> None:
        while True:
            await asyncio.to_thread(self.sweep)
            await asyncio.sleep(min(self.ttl_sec / 2, SWEEP_MAX_SEC))

    def sweep(self) -> None:
        """Removes what is too old, and the oldest while all together are too large."""
        with self._lock:
            self._make_room(0, "")

    def _save(self, data: bytes, suffix: str, owner: str) -> str:
        if len(data) > min(self._max_bytes, self._max_total_bytes):
            raise OSError(f"a file of {len(data)} bytes is larger than may be stored")
        name = f"{hashlib.sha256(data).hexdigest()}.{suffix}"
        path = self._directory / name
        with self._lock:
            if path.exists():
                os.utime(path)
                return name
            try:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                if self._total is None or self._total + len(data) > self._max_total_bytes:
                    self._make_room(len(data), owner)
                self._write(path, data)
            except OSError as error:
                self.problem = f"files cannot be stored: {error.strerror}"
                raise
            self.problem = None
            self._owners[name] = owner
            self._total = (self._total or 0) + len(data)
        return name

    def _write(self, path: Path, data: bytes) -> None:
        descriptor, temporary = tempfile.mkstemp(prefix=PART, dir=self._directory)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink()
            raise

    def _find(self, name: str) -> Path | None:
        path = self._directory / name
        try:
            age = time.time() - path.stat().st_mtime
        except OSError:
            return None
        return path if age <= self.ttl_sec else None

    def _make_room(self, needed: int, owner: str) -> None:
        """To be called with the lock. Files that somebody else has put there are left alone."""
        oldest = time.time() - self.ttl_sec
        found = []
        try:
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        found.append((status.st_mtime, status.st_size, Path(entry.path)))
        except OSError:
            self._total = None
            return
        self._total = sum(size for _, size, _ in found)
        self._owners = {path.name: self._owners.get(path.name, "") for _, _, path in found}
        held: Counter[str] = Counter({owner: needed})
        files: defaultdict[str, deque[tuple[int, Path]]] = defaultdict(deque)  # oldest first
        for modified, size, path in sorted(found):
            if modified < oldest:
                self._remove(path, size)
            else:
                whose = self._owners[path.name]
                held[whose] += size
                files[whose].append((size, path))
        while self._total + needed > self._max_total_bytes and files:
            most = max(files, key=held.__getitem__)
            size, path = files[most].popleft()
            held[most] -= size
            if not files[most]:
                del files[most]
            self._remove(path, size)

    def _remove(self, path: Path, size: int) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s", path, error.strerror)
        else:
            self._total = (self._total or 0) - size
            self._owners.pop(path.name, None)
