"""The one timer, for single kernels and for whole networks.

What is timed is a `Stopwatch`: a function that makes `n` calls and returns the seconds they took together. So a
Python callable, TVM's native loop and what a GPU does between two events are timed by the same rules:

1. warm up until the time of a call no longer changes;
2. calibrate how many calls make a sample of at least 10 ms, so that a short kernel is not lost in the clock's noise;
3. take samples until there are enough of them and the interval of their median is narrow, or time is up.

Times are seconds per call.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tvm

Stopwatch = Callable[[int], float]

SAMPLE_S = 0.010
MIN_SAMPLES = 30
# Half the width of the median's 95% interval, as a share of the median.
PRECISION = 0.01
# Below this many no interval can be given, and even a slow contender gets as many.
FEWEST_SAMPLES = 3
# A call longer than this finds its caches and threads cold only for a negligible part of itself.
_LONG_CALL_S = 0.5


@dataclass(frozen=True)
class Timing:
    """Samples of one contender, each the mean of `calls` calls made in a row, in seconds per call."""

    samples: tuple[float, ...]
    calls: int
    ci95: tuple[float, float]
    unstable: bool

    @property
    def median(self) -> float:
        """The median of the samples, in seconds."""
        return statistics.median(self.samples)


def stopwatch(call: Callable[[], object]) -> Stopwatch:
    """A stopwatch round a Python callable. The loop itself costs about 20 ns a call."""

    def watch(calls: int) -> float:
        start = time.perf_counter()
        for _ in repeat(None, calls):
            call()
        return time.perf_counter() - start

    return watch


def native_stopwatch(library: tvm.runtime.Module, name: str, arguments: Sequence[tvm.runtime.Tensor]) -> Stopwatch:
    """A stopwatch round a kernel's function, in a loop of TVM's runtime: no Python between two calls.

    Calling a kernel from Python takes about a microsecond, a tenth of one that takes ten.
    """
    import tvm

    def watch(calls: int) -> float:
        evaluator = library.time_evaluator(name, tvm.cpu(), number=calls, repeat=1)
        return float(evaluator(*arguments).mean) * calls

    return watch


def event_stopwatch(
    call: Callable[[], object],
    event: Callable[[], Any] | None = None,
    synchronize: Callable[[], object] | None = None,
) -> Stopwatch:
    """A stopwatch round calls that queue work on a GPU: the time between an event before the first and one behind the
    last, on the GPU's own clock. Where launches take longer than what they start, that is what they take.

    `event` makes one, with `record()` and `elapsed_time(other)` in milliseconds, and `synchronize` waits until the GPU
    is done; by default CUDA's, through torch.
    """
    if event is None or synchronize is None:
        import torch

        def event() -> Any:
            return torch.cuda.Event(enable_timing=True)

        synchronize = torch.cuda.synchronize
    make, wait = event, synchronize

    def watch(calls: int) -> float:
        begin, end = make(), make()
        # What was queued before is not timed.
        wait()
        begin.record()
        for _ in repeat(None, calls):
            call()
        end.record()
        wait()
        return float(begin.elapsed_time(end)) * 1e-3

    return watch


def warm_up(watch: Stopwatch, *, limit_s: float = 3.0, sample_s: float = SAMPLE_S) -> float:
    """Calls until three blocks in a row are no faster than the best before, or `limit_s` has passed.

    A block is at least half of `sample_s`; "no faster" is by 1%. Returns seconds per call, of the last blocks.
    """
    spent = last = watch(1)
    blocks: list[float] = []
    best, since = last, 0
    calls = 1
    while since < 3 and spent < limit_s:
        elapsed = watch(calls)
        spent += elapsed
        last = elapsed / calls
        if elapsed < sample_s / 2:
            # Not yet a block: the clock would be too much of it.
            calls = max(calls * 2, min(calls * 100, math.ceil(sample_s / max(last, 1e-9))))
            continue
        blocks = [*blocks[-2:], last]
        best, since = (last, 0) if last < 0.99 * best else (best, since + 1)
    return statistics.median(blocks) if blocks else last


def calibrate(watch: Stopwatch, seconds_per_call: float, *, sample_s: float = SAMPLE_S) -> int:
    """How many calls make a sample of at least `sample_s`; `seconds_per_call` is a first guess."""
    calls = max(1, math.ceil(1.1 * sample_s / max(seconds_per_call, 1e-9)))
    while seconds_per_call < sample_s:
        elapsed = watch(calls)
        if elapsed >= sample_s:
            break
        calls = max(calls + 1, math.ceil(calls * min(10.0, 1.2 * sample_s / max(elapsed, 1e-9))))
    return calls


def take_round(
    watch: Stopwatch, calls: int, samples: int, *, sample_s: float = SAMPLE_S, budget_s: float = math.inf,
    warmed: Callable[[], object] = lambda: None,
) -> list[float]:  # fmt: skip
    """One turn: `samples` samples of `calls` calls, fewer (but one) once `budget_s` is spent.

    Before a turn others have run: what they left in the caches, and threads that are still waking up, are taken
    out by two calls (or a sample's time of them) that do not count. `warmed` is called when that is done, but for one
    call.
    """
    start = time.perf_counter()
    if watch(1) < _LONG_CALL_S:
        while time.perf_counter() - start < sample_s:
            watch(max(1, calls // 4))
        warmed()
        watch(1)
    else:
        warmed()
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < samples and (not taken or time.perf_counter() - begin < budget_s):
        taken.append(watch(calls) / calls)
    return taken


def measure(
    watch: Stopwatch,
    *,
    min_samples: int = MIN_SAMPLES,
    precision: float = PRECISION,
    time_limit_s: float = 5.0,
    sample_s: float = SAMPLE_S,
) -> Timing:
    """Times one contender alone: warm-up, calibration, samples until narrow enough or `time_limit_s` has passed.

    At least three samples are taken whatever the limit. `unstable` says that the samples are fewer than
    `min_samples`, or that half their median's 95% interval is wider than `precision` of the median.
    """
    seconds = warm_up(watch, limit_s=time_limit_s / 2, sample_s=sample_s)
    calls = calibrate(watch, seconds, sample_s=sample_s)
    samples: list[float] = []
    start = time.perf_counter()
    while True:
        samples.append(watch(calls) / calls)
        interval = median_interval(samples)
        settled = len(samples) >= min_samples and _narrow(samples, interval, precision)
        late = time.perf_counter() - start >= time_limit_s and len(samples) >= FEWEST_SAMPLES
        if settled or late:
            return Timing(tuple(samples), calls, interval, unstable=not settled)


def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """A 95% confidence interval of the median from order statistics: no assumption on the distribution.

    With fewer than six samples no two of them reach 95%, and the smallest and largest are given.
    """
    ordered = sorted(samples)
    n = len(ordered)
    # The k-th smallest and k-th largest enclose the median with probability 1 - 2 P(Binomial(n, 1/2) < k).
    below, k = 0.0, 0
    while k < n // 2:
        below += math.comb(n, k) / 2**n
        if below > 0.025:
            break
        k += 1
    k = max(k, 1)
    return ordered[k - 1], ordered[n - k]


def _narrow(samples: Sequence[float], interval: tuple[float, float], precision: float) -> bool:
    return (interval[1] - interval[0]) / 2 <= precision * statistics.median(samples)
