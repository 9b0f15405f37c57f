"""A file that TensorBoard reads. A side product: where it cannot be written, one warning, and the run goes on.

torch's SummaryWriter writes in a thread, whose errors end the run at the next value; this writes at once.
"""

import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


class TensorBoardFile:
    """One file of events in `folder`.

    Args:
        warn: takes the one sentence that says why nothing more is written.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]):
        from tensorboard.summary.writer.record_writer import RecordWriter  # slow to import

        self.path, self._warn, self._file, self._records = folder, warn, None, None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            name, number = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}", 0
            while (folder / f"{name}.{number}").exists():
                number += 1
            self.path = folder / f"{name}.{number}"
            self._file = open(self.path, "xb")  # noqa: SIM115 -- closed by `close`
            self._records = RecordWriter(self._file)
        except OSError as error:
            self._stop(error)
        self._write(file_version="brain.Event:2")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from torch.utils.tensorboard.summary import scalar

        for name, value in values.items():
            self._write(step=step, summary=scalar(name, value))

    def histogram(self, name: str, step: int, values: Iterable[float], edges: Iterable[float]) -> None:
        from torch.utils.tensorboard.summary import histogram

        self._write(step=step, summary=histogram(name, values, edges))

    def hyper_parameters(self, options: Mapping[str, Any], final: Mapping[str, float]) -> None:
        """For TensorBoard's table of runs: what was set, and the names of the metrics that came of it.

        A word of the command line may hold bytes that are no UTF-8, which TensorBoard's files cannot: `\\udce9` then.
        """
        from torch.utils.tensorboard.summary import hparams

        readable = {name: value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
                    for name, value in options.items()}
        for part in hparams(readable, dict(final)):
            self._write(summary=part)

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _write(self, **event: Any) -> None:
        if self._file is None:
            return
        from tensorboard.compat.proto.event_pb2 import Event

        try:
            self._records.write(Event(wall_time=time.time(), **event).SerializeToString())
            self._records.flush()
            os.stat(self.path)  # into a file that was removed one can write, and nobody will read it
        except OSError as error:
            self._stop(error)

    def _stop(self, error: OSError) -> None:
        self._warn(f"TensorBoard's file {self.path} cannot be written ({error.strerror}): the run goes on without it.")
        self.close()
