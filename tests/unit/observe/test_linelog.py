"""The request log's file: rotated, and with whole lines whatever the disk does."""

import errno
import io
from pathlib import Path
from typing import Any

import pytest
from gateway.observe.linelog import LineLog

from tests.support.scripted import Run
from tests.support.waiting import until_async


async def test_log_is_rotated_and_bounded(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "log", max_bytes=1000, keep=2)
    for _ in range(5):
        for _ in range(60):
            log.write(b"x" * 19 + b"\n")
        await until_async(lambda: not log._pending and log._writing is None)
    await log.close()
    assert log.dropped == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.1", "log.2"]


@pytest.mark.parametrize("path", [".", "missing/log"])
def test_unwritable_log_drops_lines_and_nothing_else(run: Run, tmp_path: Path, path: str) -> None:
    log = LineLog(tmp_path / path, max_bytes=1000, keep=2)

    async def test() -> None:
        log.write(b"line\n")
        await log.close()

    run(test)
    assert log.dropped == 1


@pytest.mark.parametrize("is_cut", [True, False])
def test_write_that_stops_half_way_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cut: bool
) -> None:
    """Where what was written of a line cannot be taken back, the next begins a line of its own."""
    log = LineLog(tmp_path / "log", max_bytes=1000, keep=2)

    class Half:
        """A file on a disk with room for seven more bytes."""

        def __init__(self, file: io.FileIO) -> None:
            self.file, self.rest = file, 7

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            if not self.rest:
                raise OSError(errno.ENOSPC, "No space left on device")
            written, self.rest = self.file.write(data[: self.rest]), 0
            return written

        def truncate(self, size: int) -> None:
            if not is_cut:
                raise PermissionError
            self.file.truncate(size)

    log._write_out([b"one\n"])
    assert log._file is not None
    log._file = Half(log._file)  # type: ignore[assignment]  # it writes half
    log._write_out([b"two\n", b"three\n", b"four\n"])
    log._write_out([b"five\n"])
    log._close_file()
    assert log.dropped == 2
    assert (tmp_path / "log").read_bytes() == (b"one\ntwo\nfive\n" if is_cut else b"one\ntwo\nthr\nfive\n")


def test_line_that_a_killed_process_left_torn_stays_alone(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b'{"torn": ')
    log = LineLog(tmp_path / "log", max_bytes=1000, keep=2)
    log._write_out([b"{}\n"])
    log._close_file()
    assert (tmp_path / "log").read_bytes() == b'{"torn": \n{}\n'
