"""One training in several processes: what they share out and exchange, and the only place that knows of it.

Every batch is shared out by rows.  Each process embeds its rows, all get the embeddings of all, and each computes the
loss of the whole batch, in which only its own embeddings carry gradient.  The sum of the processes' gradients is then
that of one process with the whole batch, contrastive terms with their negatives included.

``Processes`` is one process, which has nothing to exchange; ``Group`` is those that torchrun started.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from saferclip import io, models
from saferclip.config import ConfigError

STARTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells a process
LONGEST_WAIT = timedelta(hours=2)  # for the first process, which reads all inputs to know them again

ValueT = TypeVar("ValueT")

logger = logging.getLogger(__name__)


class Processes:
    """One process alone; all methods that exchange something return what they are given."""

    rank = 0
    count = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of some rows; there may be none."""
        return rows

    def join(self, columns: Sequence[Tensor], rows: int) -> Sequence[Tensor]:
        """Tensors of this process's part of the rows, (part, dim) each -> of all: (rows, dim), in the rows' order.

        Gradient flows into this process's part only.
        """
        del rows
        return columns

    def sum_gradients(self, weights: Iterable[Tensor]) -> None:
        """Add up the gradients of all processes; None remains where no process has one."""

    def align(self, weights: Iterable[Tensor], seed: int) -> None:
        """Let all processes start with the first one's weights, each with random numbers of its own."""

    def highest(self, *numbers: int) -> list[int]:
        """The highest of all processes' numbers, place by place, so that all decide alike."""
        return list(numbers)

    def from_first(self, compute: Callable[[], ValueT]) -> ValueT:
        """What the first process computes, in all."""
        return compute()

    def random_states(self) -> list[Tensor]:
        """The state of each process's random numbers; the first process gets all of them."""
        return [_random_state()]

    def ending(self) -> int:
        """A signal that this process would have got if it still could."""
        return 0


class Group(Processes):
    """One of the processes that torchrun started."""

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self._launcher = os.getppid()

    def share(self, rows: Tensor) -> Tensor:
        return torch.tensor_split(rows, self.count)[self.rank]

    def join(self, columns: Sequence[Tensor], rows: int) -> Sequence[Tensor]:
        sizes = [len(part) for part in torch.tensor_split(torch.arange(rows), self.count)]
        own = torch.stack(list(columns))
        # All send equally much: the first process has the largest part.
        sent = own.new_zeros(len(columns), sizes[0], own.shape[2])
        sent[:, : own.shape[1]] = own.detach()
        received = [torch.empty_like(sent) for _ in sizes]
        with _together():
            dist.all_gather(received, sent)
        parts = [part[:, :size] for part, size in zip(received, sizes, strict=True)]
        parts[self.rank] = own
        return torch.cat(parts, dim=1).unbind()

    def sum_gradients(self, weights: Iterable[Tensor]) -> None:
        weights = list(weights)
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        having = torch.tensor([float(weight.grad is not None) for weight in weights], device=weights[0].device)
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), having])
        with _together():
            dist.all_reduce(flat)
        *sums, having = torch.split(flat, [*(weight.numel() for weight in weights), len(weights)])
        for weight, total, count in zip(weights, sums, having.tolist(), strict=True):
            # empty_like: with the weight's order in memory, on which the optimiser relies.
            weight.grad = torch.empty_like(weight).copy_(total.view(weight.shape)) if count else None

    def align(self, weights: Iterable[Tensor], seed: int) -> None:
        with _together(), torch.no_grad():
            for weight in weights:
                first = weight.contiguous()
                dist.broadcast(first, 0)
                weight.copy_(first)
        if not self.first:
            # An odd constant spreads (seed, rank) over the seeds, so that neighbouring seeds share no stream.
            torch.manual_seed((seed + self.rank * 0x9E3779B97F4A7C15) % 2**63)

    def highest(self, *numbers: int) -> list[int]:
        found = torch.tensor(numbers)
        with _together():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def from_first(self, compute: Callable[[], ValueT]) -> ValueT:
        values = [compute() if self.first else None]
        with _together():
            dist.broadcast_object_list(values, 0, device=torch.device("cpu"))
        return values[0]  # type: ignore[return-value]

    def random_states(self) -> list[Tensor]:
        own = _random_state()
        received = [torch.empty_like(own) for _ in range(self.count)]
        with _together():
            dist.all_gather(received, own)
        return received

    def ending(self) -> int:
        # Without its launcher nobody ends this process; a run that was started again would have it as a rival.
        return 0 if os.getppid() == self._launcher else signal.SIGTERM

    def reports_first(self) -> bool:
        """Whether no other process has reported an error before; the launcher, while it lives, keeps count."""
        if self.ending():
            return self.first
        try:
            return dist.distributed_c10d._get_default_store().add("saferclip/reports", 1) == 1
        except RuntimeError:
            return True


@contextmanager
def connected() -> Iterator[Processes]:
    """The processes that train together: those that torchrun started, or this one alone.

    Of several that fail, the first reports its error; the others, which it takes along, end silently.
    """
    if not all(name in os.environ for name in STARTED):
        yield Processes()
        return
    cuda = torch.cuda.is_available()
    if cuda:
        check_devices(int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])))
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # What processes agree upon stays on the CPU, so that no GPU is waited for.
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=LONGEST_WAIT)
    group = Group()
    package, level = logging.getLogger("saferclip"), logging.getLogger("saferclip").level
    if not group.first:
        package.setLevel(logging.ERROR)
    try:
        yield group
    except BaseException as error:
        if not group.reports_first():
            raise SystemExit(error.code if isinstance(error, SystemExit) else 1) from None
        raise
    finally:
        package.setLevel(level)
    dist.destroy_process_group()


def check_devices(wanted: int) -> None:
    """Raise ConfigError if there are GPUs, but fewer than processes."""
    there = torch.cuda.device_count()
    if 0 < there < wanted:
        raise ConfigError(
            f"training in {wanted} processes needs {wanted} GPUs, and {there} can be seen here; lower the resource "
            "gpu of the rule training (or --processes), or ask for a machine with more"
        )


def restore_random(states: Sequence[Tensor], rank: int) -> None:
    """Put back a process's random numbers, as ``random_states`` gave them."""
    if rank >= len(states):
        logger.warning("the run goes on in more processes than before; dropout, if any, is drawn anew in the new ones")
        return
    on_cpu, on_gpu = torch.tensor_split(states[rank], [len(torch.get_rng_state())])
    torch.set_rng_state(on_cpu)
    if len(on_gpu) and torch.cuda.is_available():
        torch.cuda.set_rng_state(on_gpu)


def _random_state() -> Tensor:
    """Random numbers of the CPU and of this process's GPU, bytes one after the other."""
    on_gpu = torch.cuda.get_rng_state() if models.default_device().type == "cuda" else torch.empty(0, dtype=torch.uint8)
    return torch.cat([torch.get_rng_state(), on_gpu])


@contextmanager
def _together() -> Iterator[None]:
    """Around what needs all processes."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise  # an error of this process
        reason = str(error).strip().splitlines()[0].partition(". ")[0]
        raise io.DataError(
            f"another process of this training is gone, and this one ends with it ({reason}); the run's state is kept: "
            "start again to go on"
        ) from error
