"""No rule makes, by hand or in search, a kernel that a launch is refused for: shared memory, threads of a block."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import pytest
from tvmopt.schedules.cuda import product

from bench.cuda_proof import check
from bench.cuda_proof.cases.base import Case
from bench.cuda_proof.cases.every import CASES, chosen
from bench.cuda_proof.cases.product import products
from tests.cuda.support import compiled, needs_nvcc, scheduled
from tvmopt.machine import GpuMachine, named_gpu
from tvmopt.machine_gpu import ARCHITECTURES
from tvmopt.operators import GPU_PRODUCTS
from tvmopt.registry import Recorder, rules
from tvmopt.tuning.template import Space

# Half precision on GPUs whose blocks get 99 KiB of shared memory, and on those with more.
LARGE = [(4096, 4096, 4096), (25088, 512, 512), (25088, 512, 4608)]


class Largest(Recorder):
    """The largest candidate of every number: of tiles, steps and stages the most shared memory."""

    def __call__(self, name: str, candidates: Sequence[Any], default: Any) -> Any:
        """The last where candidates are numbers, else the rule's own."""
        numbers = all(isinstance(candidate, int) for candidate in candidates)
        self.choices[name] = max((*candidates, default)) if numbers else default
        return self.choices[name]


def assert_launches(made: Any, machine: GpuMachine) -> None:
    source = check.source(made, machine)
    assert not check.too_much_shared(source.static, source.dynamic, machine)
    assert all(int(n) <= machine.max_threads_per_block for n in re.findall(r"__launch_bounds__\((\d+)\)", source.text))


@needs_nvcc
@pytest.mark.parametrize("arch, sizes", [("sm_86", LARGE[1]), ("sm_89", LARGE[0])])
def test_cuda_tensor_cores_with_little_shared_memory(arch: str, sizes: tuple[int, int, int]) -> None:
    code = compiled(products(*sizes, dtype="float16"), arch)
    assert code.has("HMMA.16816.F32") and code.has("LDGSTS.E.BYPASS.128") and code.spilled == 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("sizes", LARGE, ids=lambda sizes: "x".join(map(str, sizes)))
def test_cuda_tensor_cores_keep_their_copies_ahead(arch: str, sizes: tuple[int, int, int]) -> None:
    made = scheduled(products(*sizes, dtype="float16"), arch, Recorder({"unit": "mma"}))
    assert made.choices["stages"] == 3
    assert_launches(made, named_gpu(arch))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("sizes", [*LARGE, (1, 1000, 2048), (64, 64, 16), (49, 512, 4608)], ids=str)
def test_cuda_largest_tiles_launch(arch: str, sizes: tuple[int, int, int]) -> None:
    for dtype in ("float16", "float32"):
        assert_launches(scheduled(products(*sizes, dtype=dtype), arch, Largest()), named_gpu(arch))
    assert_launches(scheduled(products(*sizes, dtype="float16"), arch, Recorder({"unit": "mma"})), named_gpu(arch))


def assert_all_drawn_launch(case: Case, arch: str, count: int) -> None:
    space = Space(case.kernel, named_gpu(arch), rules("cuda"))
    drawn = [space.sample(random.Random(seed)) for seed in range(count)]
    points = [point for point in drawn if point is not None]
    assert points
    for point in points:
        assert_launches(point, named_gpu(arch))


@pytest.mark.parametrize("rule", CASES)
def test_cuda_search_offers_what_launches(rule: str) -> None:
    """The largest numbers, and some drawn, where shared memory is least; `wgmma` is Hopper's."""
    arch = "sm_90" if rule == "wgmma" else "sm_86"
    case = chosen(rule, 1)[0]
    assert_launches(scheduled(case, arch, Largest()), named_gpu(arch))
    assert_all_drawn_launch(case, arch, 3)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("rule", CASES)
def test_cuda_search_offers_what_launches_at_boundary_shapes(rule: str, arch: str) -> None:
    for case in chosen(rule, 6):
        assert_launches(scheduled(case, arch, Largest()), named_gpu(arch))
        assert_all_drawn_launch(case, arch, 6)


def test_the_proof_knows_which_products_are_the_tensor_cores() -> None:
    assert product.OPS == GPU_PRODUCTS
