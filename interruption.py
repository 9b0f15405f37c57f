"""Stopping when a signal asks for it: after the running step, in all processes alike, with everything saved."""

import signal
import threading
from collections.abc import Iterable
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Interrupted(Exception):
    """A signal stopped the run, and what it had done is saved. `signal_number` says which."""

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class StopRequest:
    """Remembers that a signal asked to stop, while it is entered as a context.

    One process may have a signal that the others have not: each step all of them tell each other, by a message that
    travels while the next step computes, so that all stop after the same step. A second Ctrl-C stops at once.
    SIGHUP, of a terminal that was closed, stays ignored where it was: under nohup.

    Args:
        world_size: processes that must agree.
        signals: which signals ask to stop.
    """

    def __init__(self, world_size: int = 1, signals: Iterable[int] = STOP_SIGNALS):
        self.world_size, self.signals = world_size, tuple(signals)
        self.received = 0
        """Number of the signal that this process had; 0 until then."""
        self._previous: dict[int, object] = {}
        self._message: tuple[torch.Tensor, dist.Work] | None = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python takes signals there only
            self._previous = {number: signal.signal(number, self._remember) for number in self.signals
                              if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._message is not None and error is None:
            self._message[1].wait()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if number != signal.SIGHUP or not self.received:  # a closed terminal often comes with what closed it
            self.received = number

    def agreed(self) -> int:
        """The signal that some process had, or 0: the same in all of them. Every process calls it once per step."""
        if self.world_size == 1:
            return self.received
        heard = 0
        if self._message is not None:
            told, work = self._message
            work.wait()
            heard = int(told)
        told = torch.tensor(max(self.received, heard))  # on the CPU: reading it waits for no GPU
        self._message = (told, dist.all_reduce(told, dist.ReduceOp.MAX, async_op=True))
        return heard

    def agreed_now(self) -> int:
        """The same, waiting for the others' answer: for where processes have unlike numbers of batches."""
        if self.world_size == 1:
            return self.received
        told = torch.tensor(self.received)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return int(told)
