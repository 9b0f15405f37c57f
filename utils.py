"""The process group, randomness and checkpoints: what every part of the program stands on."""

import ctypes
import hashlib
import io
import os
import re
import resource
import shutil
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

import paths
from distributed import Processes, meeting_place
from errors import DamagedFileError, InputError


# ---- randomness ----
def random_seed(seed: int, *position: int | str) -> int:
    """A seed for one place in a run: a function of (seed, position) and nothing else, spread by a hash."""
    text = repr((seed, *position)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def random_generator(seed: int, *position: int | str) -> torch.Generator:
    """A CPU generator for one place in a run, such as (seed, "order", task, epoch)."""
    return torch.Generator().manual_seed(random_seed(seed, *position))


# ---- processes ----
def init_distributed(processes: Processes, device: torch.device, dist_url: str = "env://",
                     timeout: timedelta = timedelta(minutes=30)) -> None:
    """Join the process group: NCCL for tensors on CUDA, gloo for those on the CPU. A single process does nothing.

    Args:
        dist_url: where the processes meet. `env://` is MASTER_ADDR and MASTER_PORT, which torchrun sets; those that
            are not set follow from the Slurm job step or the mpirun.
        timeout: how long a process waits for the others before it gives up, here and in everything they do together.

    Raises:
        InputError: the processes could not meet.
    """
    if processes.world_size == 1:
        return
    if dist_url == "env://":
        for name, value in meeting_place().items():
            os.environ.setdefault(name, value)
        if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise InputError(f"the {processes.world_size} processes do not know where to meet: set MASTER_ADDR to the "
                             "machine of process 0 and MASTER_PORT to a free port there, or start them with torchrun "
                             "or srun.")
    try:
        store, rank, world_size = next(dist.rendezvous(dist_url, processes.rank, processes.world_size, timeout=timeout))
        # Keys of their own for every start: torchrun may keep a store over restarts, with dead processes' addresses.
        store = dist.PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", store=store,
                                timeout=timeout, rank=rank, world_size=world_size)
    except (ValueError, RuntimeError) as error:
        place = " ".join(f"{name}={os.environ[name]}" for name in ("MASTER_ADDR", "MASTER_PORT") if name in os.environ)
        raise InputError(f"--dist_url {dist_url}{f' ({place})' if place and dist_url == 'env://' else ''}: the "
                         f"{processes.world_size} processes could not meet there ({str(error).splitlines()[0]}); start "
                         "them with torchrun or srun, or give the address of process 0.") from error


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def gathered_in_order(part: torch.Tensor, most: int) -> torch.Tensor:
    """The rows of all processes, those of process 0 first; each has at most `most` of them."""
    if not dist.is_initialized():
        return part
    world_size = dist.get_world_size()
    counts = [torch.zeros(1, dtype=torch.long, device=part.device) for _ in range(world_size)]
    dist.all_gather(counts, torch.tensor([len(part)], device=part.device))
    padded = torch.cat([part, part.new_zeros(most - len(part), *part.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(parts, padded)
    return torch.cat([rows[:int(count)] for rows, count in zip(parts, counts, strict=True)])


def same_everywhere(tensors: Iterable[torch.Tensor]) -> None:
    """Give them the values of process 0, in place: what every process computed alike may differ in its last bits."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


T = TypeVar("T")


def from_main_process(processes: Processes, find: Callable[[], T]) -> T:
    """What `find` returns in the main process, in every process; or the InputError that it raises there."""
    if processes.world_size == 1:
        return find()
    found: list[Any] = [None, None]
    if processes.is_main:
        try:
            found[0] = find()
        except InputError as error:
            found[1] = str(error)
    dist.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise InputError(found[1])
    return found[0]


def tells_of_a_lost_process(error: RuntimeError) -> bool:
    """Whether this is how a process group tells that a process ended, or could not be reached in time."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL"))


def tells_of_a_lost_worker(error: RuntimeError) -> bool:
    """Whether this is how torch tells that a process that decodes images ended; it may come at any line."""
    return str(error).startswith("DataLoader worker")


def without_places(error: RuntimeError) -> str:
    """The first sentence of a C++ library's error, without the file and the line where it arose."""
    return re.split(r"\. |\n", re.sub(r"^\[[^\]]*\] *", "", str(error).strip()))[0]


def serve(trainer: int) -> None:
    """Make this process one that works for `trainer`, the process that forked it: it ends when that does, however
    that happens, and leaves signals to it. What is sent to all processes of a group or a job would otherwise take the
    images away from a run that is about to finish its step and save.
    """
    if sys.platform != "linux":
        return
    parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl.h
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
    if os.getppid() != trainer:  # it ended before the line above
        os._exit(1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_told_by, args=(trainer,), daemon=True).start()


def _end_when_told_by(trainer: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(0)


@contextmanager
def main_process_first(processes: Processes) -> Iterator[None]:
    """The body runs in the main process first and in the others after it, which find what it fetched for all."""
    if processes.world_size > 1 and not processes.is_main:
        dist.barrier()
    try:
        yield
    finally:
        if processes.world_size > 1 and processes.is_main:
            dist.barrier()


# ---- memory ----
def keep_freed_memory() -> None:
    """Let the C library keep the memory that tensors on the CPU gave back, for the next ones.

    glibc returns blocks above 32 MB to the kernel at once, and every block of every step gets, and zeroes, the same
    pages again: at batch 16 the larger tensors of a ViT-B/16 are of that size. Other C libraries stay as they are.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


@contextmanager
def one_sentence_for_too_little_memory(remedy: str = "use a smaller --batch_size, --input_size or --model; what was "
                                                     "saved before is still good") -> Iterator[None]:
    """Arrays that do not fit, on the CPU or on a GPU, are told with the options that make them smaller."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # oneDNN, which multiplies on CPUs, calls what it has no memory for a primitive; cuBLAS and cuDNN name a status.
        if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
                or str(error) == "could not create a primitive" or "_STATUS_ALLOC_FAILED" in str(error)):
            raise
        what = str(error).partition("\n")[0][:200]  # a MemoryError may say nothing
        raise DamagedFileError(f"there is too little memory{f' ({what})' if what else ''}: {remedy}.") from error


def shown(protocol: str) -> str:
    """A protocol as a reader is told it; the words that results are saved with stay, or old ones would differ."""
    return protocol.replace("nothing to choose", "no choice of prompts")


# ---- files ----
def peak_memory(device: torch.device) -> int | None:
    """Bytes at most so far: allocated on the GPU by torch, or resident in this process; None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform != "linux":
        return None
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_atomically(path: Path, data: bytes, keep_as: Path | None = None) -> None:
    """A reader of `path` sees the old content or the whole new one, whenever the machine stops.

    Args:
        keep_as: where the old content stays once the new one was read back and is right.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep_as is not None:
            if temporary.read_bytes() != data:
                raise OSError(f"{path} cannot be read back as it was written")
            _keep(path, keep_as)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _keep(path: Path, keep_as: Path) -> None:
    """Let `keep_as` be what `path` is now, without a moment in which either is missing."""
    if not path.exists():
        return
    link = keep_as.with_name(f".{keep_as.name}.{os.getpid()}.tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without links
        shutil.copyfile(path, link)
    os.replace(link, keep_as)


CHECKPOINT_FORMAT = "l2p-checkpoint-1"
MAX_CHECKPOINT_BYTES = 64 * 2**30


def save_checkpoint(path: Path, content: dict[str, Any], keep_as: Path | None = None) -> None:
    """Write tensors and plain values as `write_atomically` does."""
    write_atomically(path, checkpoint_bytes(content), keep_as)


def checkpoint_bytes(content: dict[str, Any]) -> bytes:
    """What a checkpoint file holds: the content as torch saves it, and a checksum over those bytes behind them."""
    buffer = io.BytesIO()
    torch.save({"format": CHECKPOINT_FORMAT, **content}, buffer)
    data = buffer.getvalue()
    return data + _checksum(data)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; tensors come on the CPU.

    What stands in it is not looked at: `saved_files.read_checkpoint` does.

    Raises:
        InputError: no file, a damaged file, or a file of another program (a pickle that carries code is not run).
    """
    try:
        data = paths.read_bytes(path, str(path), MAX_CHECKPOINT_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: it is a checkpoint of the run in --output_dir.") from None
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    ours = checksum.startswith(_CHECKSUM_MARK)
    if ours and _checksum(body) != checksum:
        raise InputError(f"{path} is damaged (its checksum differs): remove it, or copy it anew.")
    try:
        content = torch.load(io.BytesIO(body if ours else data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch says of it, it is not what `checkpoint_bytes` made
        if "argparse.Namespace" in str(error):
            raise InputError(f"{path} holds pickled options, as a task1_checkpoint.pth of the PyTorch "
                             "re-implementation does, and is not read here: import_run.py makes a run of it."
                             ) from error
        raise InputError(f"{path} is not a checkpoint of this program, or is cut short: put a copy back.") from error
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise InputError(f"{path} is not a checkpoint of this program: give the --output_dir of a run made here.")
    return content


_CHECKSUM_MARK = b"l2p-sum:"
_CHECKSUM_BYTES = len(_CHECKSUM_MARK) + 8


def _checksum(data: bytes) -> bytes:
    return _CHECKSUM_MARK + f"{zlib.crc32(data):08x}".encode()
