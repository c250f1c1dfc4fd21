"""Result documents for the report, made up: every field is there, nothing was measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench import results, statistics

Row = dict[str, Any]


def make_row(variant: str, ms: float, **more: Any) -> Row:
    samples = [ms * (1 + 0.01 * (n % 5)) for n in range(12)]
    summary = statistics.summary(samples)
    row: Row = {
        "model": "digits_cnn", "variant": variant, "target": "llvm", "dtype": "float32", "batch": 1, "sparsity": 0.0,
        "method": None, "latency_ms": summary, "samples_ms": samples, "compile_s": 1.0, "max_abs_err": 1e-6,
        "accuracy": {"top1": 0.98, "top5": 1.0, "agreement": 1.0, "n": 359}, "params": 10, "nonzero_params": 10,
        "size_bytes": 300000, "size_compressed_bytes": 100000, "flops": 1000, "threads": 2, "strategy": "default",
        "ci95": [summary["median"] * 0.9, summary["median"] * 1.1], "unstable": False, "cold": False,
        "rounds": [n // 3 for n in range(12)], "peak_memory_bytes": 10**8, "tuning_s": None, "error": None,
        "tuning_curve": None,
    }  # fmt: skip
    return {**row, **more}


def failed_row(variant: str, error: str) -> Row:
    nothing = {"latency_ms": None, "samples_ms": [], "rounds": [], "ci95": None, "accuracy": None, "max_abs_err": None}
    return make_row(variant, 1.0, **nothing, error=error)


def make_profile(scale: float) -> list[Row]:
    """A convolution, a dense kernel and a copy."""
    lines = []
    for name, op, flops, size, seconds in (
        ("fused_conv2d_direct_add_relu", "conv2d_direct", 600000, 30000, 5e-6),
        ("fused_dense_add", "dense", 6000, 13000, 2e-7),
        ("reshape", "elementwise", 0, 500, 2e-8),
    ):
        seconds *= scale
        lines.append(
            {
                "kernel": name, "op": op, "shape": "1x8 -> 1x8", "source": "manual", "calls": 2, "seconds": seconds,
                "flops": flops, "bytes": size, "roof_s": seconds / 2, "gflops": flops / seconds * 1e-9,
                "bytes_per_s": size / seconds, "peak_fraction": 0.5,
            }
        )  # fmt: skip
    return lines


CURVE = {
    "trials": 40,
    "elapsed_s": 30.0,
    "kernels": [
        {"kernel": "conv", "manual_s": 3e-6, "tried": 24, "points": [[3, 2.0, 0.9], [9, 7.5, 0.6]]},
        {"kernel": "dense", "manual_s": 1e-6, "tried": 16, "points": []},
    ],
}
ROOF = {"gflops": 300.0, "bandwidths": [[16384, 240e9], [131072, 90e9]]}


@pytest.fixture
def make_document() -> Callable[..., dict[str, Any]]:
    def make(rows: list[Row], **environment: Any) -> dict[str, Any]:
        where = {
            "date": "2026-11-20T22:20:29+00:00", "host": "some-host-123456", "cpu": "Some CPU", "load_before": 0.25,
            "load_after": 0.5, "git": {"revision": "0123456789abcdef", "dirty": True},
            "caches_bytes": {"l1": 32768}, "versions": {"torch": "2.13.0"},
        }  # fmt: skip
        return results.document({**where, **environment}, rows)

    return make


@pytest.fixture
def document(make_document: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Three variants with profiles, two peers of which one failed, and auto's pruned forms."""
    accuracy = {"top5": 1.0, "agreement": 0.9, "n": 359}
    rows = [
        make_row("original", 9.0, profile=make_profile(90), roof=ROOF, unstable=True),
        make_row("manual", 0.2, profile=make_profile(2), roof=ROOF),
        make_row("auto", 0.1, profile=make_profile(1), roof=ROOF, tuning_curve=CURVE),
        make_row("peer:onnxruntime", 0.3),
        failed_row("peer:openvino", "cannot <b>load</b> the model"),
        make_row("auto", 0.08, sparsity=0.5, method="magnitude", accuracy={"top1": 0.97, **accuracy}),
        make_row("auto", 0.05, sparsity=0.9, method="magnitude", accuracy={"top1": 0.9, **accuracy}),
    ]
    return make_document(rows)
