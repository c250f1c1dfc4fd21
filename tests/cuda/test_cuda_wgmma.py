"""The product by Hopper's wgmma and TMA: its machine code, what it computes where others stand in for its instructions,
and what it leaves to mma.sync."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from tvm import te
from tvmopt.schedules.cuda import LADDERS, wgmma
from tvmopt.schedules.cuda.wgmma_kernel import accumulator_place, shared_bytes

from bench.cuda_proof.cases.base import Case
from bench.cuda_proof.cases.product import products
from bench.cuda_proof.cases.wgmma import image, layer, typical
from bench.ladder import Taken
from tests.cuda import hopper
from tests.cuda.support import compiled, needs_nvcc, scheduled
from tvmopt.graph import gpu_pipeline
from tvmopt.machine import named_gpu
from tvmopt.model import from_module
from tvmopt.operators.gemm import gemm
from tvmopt.registry import Recorder, apply_rule, rules, write_kernels
from tvmopt.tuning.log import Log, key_module, structural_hash
from tvmopt.tuning.worker import compile_kernel
from tvmopt.variants import build_variant

DTYPES = ("float16", "bfloat16")
HOPPER = named_gpu("sm_90")
# What each of 384 threads may have of an SM's 65536.
REGISTERS = 168

needs_host_compiler = pytest.mark.skipif(
    hopper.GXX is None or hopper.headers() is None, reason="no g++, or no CUDA headers"
)


LARGE, TAKEN = typical()[0], typical()
LEFT = {
    "fp32": products(2048, 2048, 2048),
    "columns in rows of no multiple of 16 bytes": products(2048, 2044, 2048, dtype="float16"),
    "depth in rows of no multiple of 16 bytes": products(2048, 2048, 2044, dtype="float16"),
    "less than a step of the depth": products(2048, 2048, 56, dtype="float16"),
    "fewer tiles than SMs": products(1024, 1024, 2048, dtype="float16"),
    "several products": products(1024, 1024, 1024, batch=4, dtype="float16"),
    "patches": image(56, 64, 256, kernel=3, padding=1),
    "stride": image(57, 64, 512, batch=16, stride=2),
    "border": image(56, 64, 256, padding=1),
    "groups": image(56, 128, 256, groups=2),
}


@pytest.mark.parametrize("one", TAKEN, ids=lambda case: case.label)
def test_cuda_hopper_takes_it_and_others_do_not(one: Case) -> None:
    assert scheduled(one, "sm_90").rule.name == "wgmma"
    assert {scheduled(one, arch).rule.name for arch in ("sm_80", "sm_86", "sm_89")} == {"tensor_core"}


@pytest.mark.parametrize("why", LEFT)
def test_cuda_left_to_others(why: str) -> None:
    assert scheduled(LEFT[why], "sm_90").rule.name in ("tensor_core", "product")


def test_cuda_an_epilogue_that_looks_elsewhere() -> None:
    x, w = (te.placeholder((2048, 2048), "float16", name) for name in "XW")
    plain = gemm(x, w)
    mirrored = te.compute(plain.shape, lambda i, j: plain(i, j) + plain(i, 2047 - j), name="mirrored")
    turned = te.compute(plain.shape, lambda i, j: plain(j, i), name="turned")
    for out in (mirrored, turned):
        case = dataclasses.replace(LARGE, func=te.create_prim_func([x, w, out]))
        assert wgmma.rule(tvm.s_tir.Schedule(key_module(case.func)), case.kernel, HOPPER, Recorder()) is None


def test_cuda_accumulators_are_all_of_the_tile() -> None:
    assert len({accumulator_place(t, r) for t in range(128) for r in range(128)}) == 64 * 256
    # "Register Fragments", wgmma.m64nNk16: thread 37 holds columns 2, 3 of rows 17 and 25, and 10, 11 of row 17.
    assert [accumulator_place(37, r) for r in (0, 1, 2, 4)] == [(17, 2), (17, 3), (25, 2), (17, 10)]


def test_cuda_every_choice_fits_shared_memory() -> None:
    recorder = Recorder()
    for width in wgmma.WIDTHS:
        recorder = Recorder({"width": width})
        assert apply_rule(LARGE.kernel, HOPPER, rules("cuda"), recorder) is not None
        assert recorder.choices["stages"] == max(recorder.candidates["stages"])
        assert all(shared_bytes(width, s) <= HOPPER.shared_per_block for s in recorder.candidates["stages"])


def assert_figures(case: Case, choose: Any = None) -> None:
    code = compiled(case, "sm_90", choose)
    assert code.has("HGMMA") and code.has("UTMALDG") and not code.has("HMMA") and not code.has("LDGSTS")
    assert code.spilled == 0 and code.registers <= REGISTERS and code.shared == 0
    # Sums in memory would be there too where an index isn't known.
    assert not code.has("LDL") and not code.has("STL")
    # As many as the text has: ptxas waits after each one where it can't see that sums are left alone. The loop is
    # there once or twice, and the wait after it.
    assert code.instructions["HGMMA.64"] % 4 == 0
    assert code.instructions["WARPGROUP.DEPBAR.LE"] == code.instructions["HGMMA.64"] // 4 + 1


@needs_nvcc
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_machine_code(dtype: str) -> None:
    assert_figures(products(2048, 2048, 2048, dtype=dtype))


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("one", TAKEN, ids=lambda case: case.label)
@pytest.mark.parametrize("width", wgmma.WIDTHS)
def test_cuda_boundary_shapes_compile(one: Case, width: int) -> None:
    assert_figures(one, Recorder({"width": width}))


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(LADDERS["wgmma"])), ids=[rung.name for rung in LADDERS["wgmma"]])
def test_cuda_every_rung_compiles(index: int) -> None:
    assert_figures(LARGE, Taken(LADDERS["wgmma"], index))


def narrowed(array: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The bits of `array` in a type of 16 bits, and its values there."""
    narrow = torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(getattr(torch, dtype))
    return narrow.view(torch.int16).numpy().view(np.uint16), narrow.double().numpy()


def computed(bits: np.ndarray, dtype: str) -> np.ndarray:
    return torch.from_numpy(bits.view(np.int16).copy()).view(getattr(torch, dtype)).double().numpy()


def small(case: Case, choices: dict[str, Any]) -> tvm.tirx.PrimFunc:
    """The kernel for a Hopper of one SM, which even a small product fills."""
    made = apply_rule(case.kernel, dataclasses.replace(HOPPER, sms=1), rules("cuda"), Recorder(choices))
    assert made is not None and made.rule.name == "wgmma" and choices.items() <= made.choices.items()
    return write_kernels(made.schedule.mod)["main"]


def assert_right(found: np.ndarray, wanted: np.ndarray, dtype: str, depth: int) -> None:
    # Sums in fp32, one rounding to the type, one more behind the bias.
    digits = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    allowed = 2 * digits * np.abs(wanted).max() + 2e-6 * np.sqrt(depth)
    assert np.abs(found - wanted).max() <= allowed


# One tile, then one row, 8 columns, 8 of the depth more and fewer than whole ones; more steps than stages.
ON_THE_CPU = [
    ((128, 128, 64), {"width": 128, "stages": 1}), ((129, 136, 72), {"width": 64, "stages": 2}),
    ((127, 120, 120), {"width": 128, "flying": 0}), ((130, 264, 328), {"width": 256, "stages": 3}),
    ((65, 248, 264), {"width": 256, "stages": 2, "flying": 1}), ((1, 72, 200), {"width": 64, "stages": 4}),
]  # fmt: skip


@needs_nvcc
@needs_host_compiler
@pytest.mark.parametrize("number", range(len(ON_THE_CPU)), ids=["x".join(map(str, s)) for s, _ in ON_THE_CPU])
def test_hopper_stood_in_for_computes_the_product(number: int) -> None:
    sizes, choices = ON_THE_CPU[number]
    dtype = DTYPES[number % 2]
    case = products(*sizes, dtype=dtype)
    inputs = [narrowed(one, dtype) for one in products(*sizes).inputs()]
    found = hopper.run(small(case, choices), [bits for bits, _ in inputs])
    assert_right(computed(found, dtype), case.expected([values for _, values in inputs]), dtype, sizes[-1])


@needs_nvcc
@needs_host_compiler
@pytest.mark.parametrize("one", [layer((3, 43), 136, 136), image(12, 72, 136, batch=1)], ids=["layer", "convolution"])
def test_hopper_stood_in_for_other_axes(one: Case) -> None:
    inputs = [narrowed(array, "float16") for array in one.inputs()]
    found = hopper.run(small(one, {"width": 128}), [bits for bits, _ in inputs])
    wanted = one.expected([values for _, values in inputs])
    wide = found.astype("float64") if found.dtype == np.float32 else computed(found, "float16")
    assert_right(wide, wanted.reshape(wide.shape), "float16", one.depth)


def test_cuda_search_has_both_units() -> None:
    recorder = Recorder({"unit": "mma"})
    made = apply_rule(LARGE.kernel, HOPPER, rules("cuda"), recorder)
    assert made is not None and "fragments_down" in made.choices
    assert write_kernels(made.schedule.mod) is not None
    assert not any(map(gpu_pipeline.is_in_tirx, write_kernels(made.schedule.mod).functions.values()))


def test_cuda_a_log_replays_it(tmp_path: Path) -> None:
    made = scheduled(LARGE, "sm_90")
    Log.start(tmp_path).add(LARGE.func, made.schedule, 1e-4, HOPPER.target())
    again = Log.read(tmp_path).lookup(LARGE.kernel)
    assert again is not None and structural_hash(again.mod) == structural_hash(made.schedule.mod)
    assert write_kernels(again.mod)["main"].attrs[gpu_pipeline.IN_TIRX]


def test_cuda_a_worker_builds_it() -> None:
    sent = tvm.ir.save_json(scheduled(LARGE, "sm_90").schedule.mod)
    built = compile_kernel(HOPPER.target(), tvm.ir.load_json(sent))
    assert "wgmma.mma_async" in built.mod.imports[0].inspect_source()


class Layers(torch.nn.Module):
    """Two linear layers, the first large enough for wgmma."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(256, 2048), torch.nn.Linear(2048, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)))


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_cuda_a_network_uses_it_on_hopper(arch: str) -> None:
    model = dataclasses.replace(from_module(Layers().eval(), (torch.randn(1024, 256),)), dtype="float16")
    built = build_variant(model, "manual", named_gpu(arch), cuda_graphs=True)
    used = [plan.rule for plan in built.meta["plan"].kernels]
    assert ("wgmma" in used) == ("wgmma.mma_async" in built.source) == (arch == "sm_90")
    # Code with Hopper's own instructions runs on nothing later.
    assert built.code is not None and built.code.ptx == (arch == "sm_80")
    assert all(kernel.spilled == 0 for kernel in built.code.kernels)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(2048, 2048, 2048), (2049, 2056, 72), (2047, 2040, 328), (4096, 1024, 8192)])
@pytest.mark.parametrize("choices", [{}, {"stages": 1}, {"flying": 0, "width": 128}, {"width": 64}])
def test_on_the_gpu(dtype: str, sizes: tuple[int, int, int], choices: dict[str, Any]) -> None:
    from tvmopt.machine import detect_gpu

    gpu = detect_gpu()
    if gpu is None or not gpu.warpgroup_mma:
        pytest.skip("this GPU has no wgmma")
    case = products(*sizes, dtype=dtype)
    made = apply_rule(case.kernel, gpu, rules("cuda"), Recorder(choices))
    assert made is not None and made.rule.name == "wgmma"
    built = compile_kernel(gpu.target(), made.schedule.mod).jit()
    narrow = [torch.from_numpy(one).to(getattr(torch, dtype)) for one in products(*sizes).inputs()]
    wanted = case.expected([one.double().numpy() for one in narrow])
    for _ in range(3):
        found = torch.full(wanted.shape, torch.nan, dtype=getattr(torch, dtype), device="cuda")
        built["main"](*(one.cuda() for one in narrow), found)
        torch.cuda.synchronize()
        assert_right(found.double().cpu().numpy(), wanted, dtype, sizes[-1])
