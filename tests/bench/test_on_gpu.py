"""Measuring on a GPU, without one: the event timer, the L2 flush and the GPU's state over fakes."""

from __future__ import annotations

import pytest

from bench import __main__ as bench_command
from bench import on_gpu, peers, table
from tvmopt.errors import TargetError, UsageError
from tvmopt.machine import named_gpu
from tvmopt.runtime.timer import event_stopwatch


class Gpu:
    """A queue: launches take no time of the caller's, the GPU works them off, each takes 2 ms."""

    def __init__(self) -> None:
        self.queue: list[object] = []
        self.clock_ms = 0.0

    def launch(self) -> None:
        self.queue.append(None)

    def event(self) -> Event:
        return Event(self)

    def synchronize(self) -> None:
        for item in self.queue:
            if isinstance(item, Event):
                item.at = self.clock_ms
            else:
                self.clock_ms += 2.0
        self.queue.clear()


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.at = gpu, None

    def record(self) -> None:
        self.gpu.queue.append(self)

    def elapsed_time(self, other: Event) -> float:
        return other.at - self.at


def test_events_time_the_calls_and_nothing_queued_before():
    gpu = Gpu()
    watch = event_stopwatch(gpu.launch, gpu.event, gpu.synchronize)
    assert watch(5) == pytest.approx(0.010)
    gpu.launch()
    assert watch(1) == pytest.approx(0.002)


def test_cold_calls_are_each_behind_a_flush():
    order: list[str] = []

    def watch(calls: int) -> float:
        order.append("call")
        return 0.4 * calls

    assert on_gpu.take_cold(watch, lambda: order.append("flush"), 5, 1.0) == [0.4, 0.4, 0.4]
    assert order == ["flush", "call"] * 3
    assert on_gpu.take_cold(watch, lambda: None, 5, 0.0) == [0.4]


def test_the_flush_writes_more_than_the_cache_holds():
    made: list[int] = []

    class Buffer:
        def zero_(self) -> None:
            made.append(-1)

    def zeros(size: int) -> Buffer:
        made.append(size)
        return Buffer()

    on_gpu.L2Flush(50 << 20, zeros)()
    assert made == [100 << 20, -1]


def test_state_as_nvidia_smi_gives_it():
    line = "580.82, 1980, 2619, 1980, 2619, [N/A], P0, 312.51, 700.00, 41, 0x0000000000000000, Enabled\n"
    found = on_gpu.state(lambda command: line)
    assert found["sm_mhz"] == 1980 and found["power_state"] == "P0" and found["sm_mhz_application"] is None
    assert on_gpu.state(lambda command: "No devices were found\n") is None

    def missing(command):
        raise FileNotFoundError

    assert on_gpu.state(missing) is None


def test_peers_of_a_gpu():
    here, skipped = peers.installed(peers.DEFAULT, "cuda")
    assert here[:2] == ["torch", "torch-channels-last"]
    assert len(here) + len(skipped) == len(peers.GPU_PEERS)
    with pytest.raises(UsageError, match="inductor-max-autotune"):
        peers.installed(["openvino"], "cuda")


def test_without_scipy_nothing_is_compared_and_nothing_fails(monkeypatch, capsys):
    monkeypatch.setattr(bench_command.importlib.util, "find_spec", lambda name: None)
    bench_command._show({"results": []}, True, table)
    assert "scipy is not installed" in capsys.readouterr().out


def test_a_named_gpu_cannot_be_measured_on():
    with pytest.raises(TargetError, match=r"bench/gpu/run\.sh"):
        on_gpu.require(named_gpu("sm_90"))


@pytest.mark.cuda
def test_events_on_the_gpu():
    import torch

    x = torch.randn(2048, 2048, device="cuda")
    watch = event_stopwatch(lambda: x @ x)
    watch(3)
    assert 0 < watch(1) < watch(20) < 5.0
    on_gpu.L2Flush(50 << 20)()
