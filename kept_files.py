"""The small files of a run, whose whole content the run knows: where one disappears, it is written again."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import paths
from errors import InputError
from utils import write_atomically

MAX_LOG_BYTES = 4 * 2**30


class KeptFiles:
    """Writes files into a run's folder, and keeps what it wrote.

    Args:
        folder: the run's folder.
        warn: takes a sentence about what went or is damaged.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]):
        self.folder, self.warn = folder, warn
        self._contents: dict[str, bytes] = {}
        self._log_path = folder / "log.jsonl"
        self._log: list[bytes] = []
        self.log_bytes = 0

    def write(self, name: str, content: bytes) -> None:
        self._contents[name] = content
        write_atomically(self.folder / name, content)

    def write_json(self, name: str, content: Any) -> None:
        self.write(name, (json.dumps(content, indent=2) + "\n").encode())

    def keep(self, name: str) -> None:
        """Keep what an earlier start of the run wrote."""
        path = self.folder / name
        self._contents[name] = paths.read_bytes(path, str(path), MAX_LOG_BYTES)

    def begin_log(self, name: str, keep: int = 0) -> None:
        """A new log, or the first `keep` bytes of the one that is there.

        What a killed run did after its last checkpoint is done, and logged, again.
        """
        self._log_path = path = self.folder / name
        log = b""
        if keep:
            with suppress(FileNotFoundError):
                log = paths.read_bytes(path, str(path), MAX_LOG_BYTES)[:keep]
            if len(log) < keep:
                self.warn(f"{path} is gone or shorter than it was: the run goes on, and the log lacks some lines.")
            log = log[:log.rfind(b"\n") + 1]
            if damaged := [number for number, line in enumerate(log.splitlines(), start=1) if not _is_row(line)]:
                self.warn(f"{path} is damaged in line {', '.join(map(str, damaged[:10]))}: the run goes on, and these "
                          "lines stay as they are.")
        self._log, self.log_bytes = [log], len(log)
        write_atomically(path, log)

    def log(self, row: dict[str, Any]) -> None:
        """Add a line to the log, as long-lived as the checkpoint that counts its bytes."""
        line = (json.dumps(row) + "\n").encode()
        self._restore_log()
        with open(self._log_path, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._log.append(line)
        self.log_bytes += len(line)

    def restore(self) -> None:
        """Write again what has gone or has another size."""
        for name, content in self._contents.items():
            self._restore_file(self.folder / name, len(content), [content])
        self._restore_log()

    def _restore_log(self) -> None:
        self._restore_file(self._log_path, self.log_bytes, self._log)

    def _restore_file(self, path: Path, size: int, content: list[bytes]) -> None:
        try:
            intact = paths.check_file(path, str(path)) and path.stat().st_size == size
        except InputError:  # something else lies in its place
            intact = False
        if not intact:
            write_atomically(path, b"".join(content))
            self.warn(f"{path} had gone, or was changed, and was written again.")


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
