"""One run at a time in a folder.

Not the library filelock: it leaves its file behind, knows no name of the holder, and where a file system has no locks
it makes a marker in their place, which a run that is killed leaves behind for ever.
"""

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

import paths
from errors import InputError


class OutputLock:
    """Keeps every other run out of `output_dir` until it is let go, or this process ends, however that happens.

    Raises:
        InputError: another run has it.
    """

    def __init__(self, output_dir: str, patience: float = 0.0):
        """Wait up to `patience` seconds: a job that was requeued may meet the last moments of its predecessor."""
        self.path = Path(output_dir) / ".lock"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--output_dir {output_dir}: it cannot be made ({error.strerror}); name another folder."
                             ) from error
        paths.check_file(self.path, str(self.path))
        until = time.monotonic() + patience
        while not self._taken():
            if time.monotonic() >= until:
                raise InputError(f"--output_dir {output_dir} is in use by another run ({self._holder()}): wait until "
                                 "it ends, or name another folder.")
            time.sleep(0.2)

    def _taken(self) -> bool:
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._file).st_ino != os.stat(self.path).st_ino:  # its holder removed it meanwhile
                raise FileNotFoundError
        except (BlockingIOError, FileNotFoundError):
            os.close(self._file)
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            # A file system without locks: then there is none.
        os.ftruncate(self._file, 0)
        os.write(self._file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        return True

    def _holder(self) -> str:
        try:
            return paths.read_text(self.path, str(self.path), 1000) or "another process"
        except (OSError, InputError):
            return "another process"

    def release(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self._file)
