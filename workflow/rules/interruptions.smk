"""What a run does about an earlier one that was killed, and what it says of a killed job."""

import fcntl
import os
import sys
from contextlib import suppress

# A job that is killed cannot say so itself. Bash, which waits for it, has 128 + 9 as its status then.
shell.prefix(
    "set -euo pipefail; trap 'if [ $? -eq 137 ]; then echo \"The step was killed (signal 9), most often because memory"
    " ran out: see the log of the system or of SLURM, close other programs, run fewer jobs at a time (--cores), or give"
    " the rule more memory (mem_mb). Nothing that was finished is lost; start again.\" >&2; fi' EXIT; "
)


def hold_run_lock():
    """Note on the disk that a Snakemake is alive here; the first one removes the locks of killed ones.

    Snakemake's own locks name no process, so they outlive a kill and would have to be removed by `snakemake --unlock`
    each time. This lock ends with its process, so whoever gets it alone knows that all others on this machine are
    dead. Other machines may not see it, so locks stay where the last run was on another one.
    """
    try:
        os.makedirs(".snakemake", exist_ok=True)
        held = os.open(".snakemake/running", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return None  # a folder that cannot be written, of which Snakemake has more to say
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pass  # another one is alive, or this file system has no such locks: Snakemake's own locks decide
    else:
        here, there = os.uname().nodename.encode(), os.pread(held, 1000, 0)
        locks = list(Path(".snakemake/locks").glob("*.lock"))
        if not locks or there in (here, b""):
            for stale in locks:
                stale.unlink(missing_ok=True)
                logger.warning(f"Removed {stale}, left by a Snakemake that was killed.")
            os.ftruncate(held, 0)
            os.pwrite(held, here, 0)
    with suppress(OSError):
        fcntl.flock(held, fcntl.LOCK_SH)  # held until this process ends
    return held


# Not for jobs, nor for the Snakemake that writes the report, which has no locks.
RUN_LOCK = hold_run_lock() if workflow.is_main_process and "--nolock" not in sys.argv else None
