"""Start a training again in several processes, through torchrun."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import torch

from saferclip import io, signals
from saferclip.training import processes


def inside() -> bool:
    """Whether torchrun has started this process."""
    return all(name in os.environ for name in processes.STARTED)


def launch(count: int, arguments: Sequence[str]) -> None:
    """Run ``saferclip <arguments>`` in ``count`` processes of this machine, and end as they end.

    Each has a GPU of its own, and its share of this process's threads; without GPUs they share the CPU.
    Raises ConfigError if there are fewer GPUs than processes; DataError if a process was killed; SystemExit if they
    failed, or were asked by a signal to end, which they say themselves.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    processes.check_devices(count)
    # Said to each: from the environment they would take the threads of all (MKL_NUM_THREADS in Snakemake's jobs).
    threads = max(1, torch.get_num_threads() // count)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    handled = ",".join(signals.name(number) for number in signals.ENDING)
    options = ["--standalone", f"--nproc-per-node={count}", f"--signals-to-handle={handled}", "-m"]
    try:
        run.run(run.parse_args([*options, "saferclip", *arguments, f"--threads={threads}"]))  # type: ignore[no-untyped-call]
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None  # the processes, to which it was passed on, have said so
    except ChildFailedError as error:
        _end_like({rank: failure.exitcode for rank, failure in error.failures.items()})


def _end_like(codes: dict[int, int]) -> None:
    """Exit as processes of these exit codes did, which have said why; negative ones could not."""
    for rank, code in codes.items():
        if code < 0 and -code != signal.SIGTERM:
            raise io.DataError(
                f"process {rank} of the training was ended by {signals.name(-code)}; most likely it, or the job, used "
                "more memory than it was given: ask for more (mem_mb of the rule training). The run's state is kept: "
                "start again to go on"
            )
    raise SystemExit(max(codes.values(), key=lambda code: code if code > 0 else 0) or 1)
