"""How many threads TVM runs a kernel on, in a user's own process as in ours.

TVM keeps one pool of threads per calling thread, made when that first needs it, from `TVM_NUM_THREADS`, and the pool
never grows: asked later for more threads, it silently keeps what it has. So the pool is made as large as this
process's CPUs allow and then told to use as many as wanted.
"""

from __future__ import annotations

import logging
import os
import threading

from tvmopt.machine import available_cores, threads_environment

_log = logging.getLogger(__name__)


class _Current(threading.local):
    """What TVM was last told in this thread: its number of threads, 0 for nothing yet."""

    threads = 0


current = _Current()
# Workers from the fastest cores first; without pinning (TVM_BIND_THREADS=0) only the number counts.
_FASTEST_FIRST = 1


def use_threads(threads: int) -> None:
    """Make TVM run kernels of the calling thread on `threads` threads, unpinned. Cheap when they already do."""
    if current.threads == threads:
        return
    import tvm

    environment = threads_environment(threads)
    wanted = {name: value for name, value in environment.items() if name.startswith("TVM_")}
    os.environ.update({**wanted, "TVM_NUM_THREADS": str(max(threads, available_cores()))})
    tvm.get_global_func("runtime.config_threadpool")(_FASTEST_FIRST, threads)
    # What a pool made later, or in a child process, starts from.
    os.environ.update(wanted)
    used = pool_size()
    if used < threads:
        _log.warning(
            "TVM runs on %d of %d threads: it was used in this process before tvmopt was; set TVM_NUM_THREADS=%d",
            used, threads, threads,
        )  # fmt: skip
    current.threads = threads


def pool_size() -> int:
    """The number of threads that TVM's pool of the calling thread uses."""
    import tvm

    return int(tvm.get_global_func("runtime.NumThreads")())
