"""A GPU as schedules see it: named by its architecture, or read from the CUDA driver (here from a made-up one)."""

from __future__ import annotations

import ctypes

import pytest

from tvmopt.errors import TargetError
from tvmopt.machine_gpu import _ATTRIBUTES, ARCHITECTURES, detect_gpu, driver, named_gpu

H100 = {
    "max_threads_per_block": 1024, "warp": 32, "clock_khz": 1_980_000, "sms": 132, "memory_khz": 2_619_000,
    "bus_bits": 5120, "l2": 50 << 20, "max_threads_per_sm": 2048, "major": 9, "minor": 0,
    "shared_per_sm": 233472, "registers_per_sm": 65536, "shared_per_block": 232448,
}  # fmt: skip


class Driver:
    """What is asked of libcuda, answered for one made-up device."""

    def __init__(self, name: str, **attributes: int) -> None:
        self.name, self.attributes = name, {_ATTRIBUTES[key]: value for key, value in attributes.items()}

    def cuDeviceGet(self, device: object, index: int) -> int:
        return 0

    def cuDeviceGetName(self, buffer: ctypes.Array, size: int, device: object) -> int:
        buffer.value = self.name.encode()
        return 0

    def cuDeviceGetAttribute(self, value: object, number: int, device: object) -> int:
        value._obj.value = self.attributes[number]
        return 0


def test_a_gpu_is_read_from_the_driver():
    found = detect_gpu(4, Driver("NVIDIA H100 80GB HBM3", **H100))
    assert (found.name, found.arch, found.sms, found.slug) == ("NVIDIA H100 80GB HBM3", "sm_90", 132, "cuda-sm_90")
    assert found.clock_ghz == pytest.approx(1.98) and found.dram_bytes_per_s == pytest.approx(3.352e12, rel=0.01)
    assert found.shared_per_block == 227 << 10 and found.cores == 4
    assert found.present and found.tensor_cores and found.async_copy and found.warpgroup_mma
    assert not named_gpu("sm_80").warpgroup_mma and named_gpu("sm_80").async_copy
    # The table says of it what the driver says.
    named = named_gpu("sm_90")
    for name in ("shared_per_block", "shared_per_sm", "registers_per_sm", "max_threads_per_sm", "warp", "sms", "l2"):
        assert getattr(named, name) == getattr(found, name)


class Silent(Driver):
    """A driver that has some of what it is asked for as zero, or refuses to tell it."""

    def __init__(self, zero: tuple[str, ...] = (), refused: tuple[str, ...] = (), device: int = 0) -> None:
        super().__init__("A GPU", **{**H100, **dict.fromkeys(zero, 0)})
        self.refused, self.device = {_ATTRIBUTES[name] for name in refused}, device

    def cuDeviceGet(self, device: object, index: int) -> int:
        return self.device

    def cuDeviceGetAttribute(self, value: object, number: int, device: object) -> int:
        return 1 if number in self.refused else super().cuDeviceGetAttribute(value, number, device)


@pytest.mark.parametrize("how", ["zero", "refused"])
def test_a_figure_the_driver_keeps_to_itself_is_the_products(how):
    names = ("clock_khz", "memory_khz", "bus_bits", "l2")
    found, product = detect_gpu(1, Silent(**{how: names})), ARCHITECTURES["sm_90"].product
    assert (found.clock_ghz, found.l2) == (product.clock_ghz, product.l2)
    assert found.dram_bytes_per_s == product.dram_bytes_per_s and found.fp32_peak > 0
    assert found.present and found.sms == 132


@pytest.mark.parametrize("driver, words", [
    (Silent(device=101), r"the first GPU \(CUresult 101\)"), (Silent(refused=("sms",)), r"A GPU's sms \(CUresult 1\)"),
    (Silent(zero=("warp",)), "A GPU's warp:"), (Silent(refused=("major",)), "A GPU's major"),
])  # fmt: skip
def test_a_gpu_that_nothing_is_known_of_is_one_line(driver, words):
    with pytest.raises(TargetError, match=words) as error:
        detect_gpu(1, driver)
    assert "\n" not in str(error.value)


def test_an_old_gpu_is_refused_and_a_new_one_taken():
    with pytest.raises(TargetError, match="sm_70"):
        detect_gpu(1, Driver("Tesla V100", **{**H100, "major": 7}))
    assert detect_gpu(1, Driver("B200", **{**H100, "major": 10})).arch == "sm_100"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_named_gpu_has_a_target_with_all_that_search_needs(arch):
    machine = named_gpu(arch)
    target = machine.target()
    assert target.kind.name == "cuda" and target.attrs["arch"] == arch and target.host.kind.name == "llvm"
    for name in ("max_threads_per_block", "max_shared_memory_per_block", "thread_warp_size", "registers_per_block"):
        assert int(target.attrs[name]) > 0
    assert not machine.present and "not here" in machine.describe() and "\n" not in machine.describe()
    assert machine.shared_per_block < machine.shared_per_sm


def test_peak_of_a_product():
    # A100: 19.5 TFLOP/s fp32 outside of tensor cores, by its data sheet; RTX 4090: 82.6.
    assert named_gpu("sm_80").fp32_peak == pytest.approx(19.5e12, rel=0.01)
    assert named_gpu("sm_89").fp32_peak == pytest.approx(82.6e12, rel=0.01)


def test_unknown_arch():
    for wrong in ("sm_12", "ampere", ""):
        with pytest.raises(TargetError, match="choose one of sm_80"):
            named_gpu(wrong)


@pytest.mark.cuda
def test_the_gpu_that_is_here():
    found = detect_gpu()
    assert driver() is not None and found is not None
    assert found.present and found.sms > 0 and found.clock_ghz > 0.3 and found.l2 > 1 << 20
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        assert (found.name, found.sms) == (properties.name, properties.multi_processor_count)
