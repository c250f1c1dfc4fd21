"""Networks built for a GPU that is not here: compiled by nvcc, exported, and refused where they cannot run."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import __main__ as bench
from tvmopt import tune
from tvmopt.errors import ArtifactError, InputError, TargetError
from tvmopt.graph.gpu_build import memory_passes, with_threads
from tvmopt.graph.gpu_default import unbound
from tvmopt.graph.pipeline import lower_model
from tvmopt.machine import named_gpu
from tvmopt.model import from_module, load_model
from tvmopt.nvcc import compile_source, find_nvcc
from tvmopt.options import BuildOptions
from tvmopt.runtime import artifact, artifact_gpu
from tvmopt.variants import build_variant

needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc here")


class Mixed(torch.nn.Module):
    """What the layout pass meets: grouped and plain convolutions, a concatenation, pools, a scale by the channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.depthwise = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.second = torch.nn.Conv2d(8, 5, 1, bias=False)
        self.head = torch.nn.Linear(13, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(self.norm(self.first(x)))
        z = torch.nn.functional.max_pool2d(self.depthwise(y) * torch.sigmoid(y), 3, 2, 1)
        y = torch.cat([torch.nn.functional.avg_pool2d(y, 2), self.second(z)], dim=1)
        return torch.softmax(self.head(y.mean((2, 3))), 1), y


def run(module, inputs):
    """A lowered module's outputs, its kernels run unscheduled on this CPU: what the graph passes made of the model."""
    import tvm
    from tvm import relax

    executable = tvm.compile(module, target=tvm.target.Target("llvm"))
    machine = relax.VirtualMachine(executable.jit(), tvm.cpu())
    result = machine["main"](*[tvm.runtime.tensor(x.numpy()) for x in inputs])
    return [np.asarray(y.numpy()) for y in (result if not hasattr(result, "dtype") else [result])]


@pytest.mark.parametrize("dtype, allowed", [("float32", 1e-5), ("float16", 1e-2), ("bfloat16", 8e-2)])
@pytest.mark.parametrize("variant", ["original", "manual"])
def test_cuda_lowering_keeps_what_is_computed(dtype, allowed, variant):
    torch.manual_seed(0)
    inputs = (torch.randn(2, 3, 12, 10),)
    model = dataclasses.replace(from_module(Mixed(), inputs), dtype=dtype)
    wanted = [y.detach().numpy() for y in model.module(*inputs)]
    lowered = lower_model(model, named_gpu("sm_80"), variant=variant)
    found = run(lowered.module, inputs)
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == np.float32 and ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= allowed * np.abs(theirs).max()


def test_cuda_narrow_values_between_kernels_and_wide_sums():
    model = load_model("digits_cnn", dtype="float16")
    lowered = lower_model(model, named_gpu("sm_90"), variant="original")
    convolutions = [kernel for kernel in lowered.kernels if "conv2d" in kernel.name]
    assert convolutions
    for kernel in convolutions:
        assert {str(p.dtype) for p in kernel.func.params[:-1]} == {"float16"}
        # What a sum begins with.
        assert "T.float32(0.0)" in kernel.func.script()


def test_cuda_narrow_dtype_on_a_cpu_is_refused():
    from tvmopt.machine import detect

    with pytest.raises(TargetError, match="--target cuda --arch"):
        lower_model(load_model("digits_cnn", dtype="float16"), detect())


@pytest.mark.parametrize("variant", ["original", "manual"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_no_kernel_is_left_unbound(variant, dtype):
    torch.manual_seed(0)
    model = dataclasses.replace(from_module(Mixed(), (torch.randn(1, 3, 12, 10),)), dtype=dtype)
    machine = named_gpu("sm_86")
    lowered = lower_model(model, machine, variant=variant)
    assert all(unbound(kernel.func) for kernel in lowered.kernels)
    bound = with_threads(lowered.module, machine)
    left = {
        var.name_hint: unbound(func) for var, func in bound.functions_items() if var.name_hint != "main"
    }  # fmt: skip
    assert left and not any(left.values())


def test_cuda_a_half_bound_schedule_is_an_error():
    import tvm
    from tvm import te
    from tvm.s_tir import Schedule

    from tvmopt.errors import ModelError

    a = te.placeholder((64,), name="a")
    b = te.compute((64,), lambda i: a[i] + 1.0, name="b")
    c = te.compute((64,), lambda i: b[i] * b[63 - i], name="c")
    sch = Schedule(te.create_prim_func([a, c]))
    sch.bind(sch.get_loops(sch.get_sblock("c"))[0], "threadIdx.x")
    assert unbound(sch.mod["main"]) == ["b"]
    with pytest.raises(ModelError, match="leaves b to no thread"):
        with_threads(tvm.IRModule({"kernel": sch.mod["main"]}), named_gpu("sm_80"))


def test_cuda_graphs_capture_what_is_static():
    import tvm

    machine = named_gpu("sm_90")
    lowered = lower_model(load_model("digits_cnn"), machine, variant="original")
    with machine.target(), tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": True}):
        module = tvm.transform.Sequential(memory_passes(True))(lowered.module)
    assert "cuda_graph.run_or_capture" in module.script()


@needs_nvcc
def test_cuda_export_describes_itself_and_is_refused_here(tmp_path):
    machine = named_gpu("sm_80")
    compiled = build_variant(load_model("digits_cnn"), "original", machine)
    assert not compiled.runnable and compiled.code is not None and compiled.code.ptx
    assert all(use.spilled == 0 for use in compiled.code.kernels) and len(compiled.code.kernels) >= 8
    with pytest.raises(TargetError, match="export it"):
        compiled(np.zeros((1, 1, 8, 8), np.float32))
    path = compiled.export(tmp_path / "digits.so")
    metadata = artifact.read_metadata(path)
    start, size = metadata["gpu"]["code"]
    data = path.read_bytes()[start : start + size]
    # A fat binary's magic number, and both forms of the code in it.
    assert data[:4] == b"\x50\xed\x55\xba" and data == compiled.code.binary
    assert metadata["gpu"]["arch"] == "sm_80" and not metadata["gpu"]["fast_math"]
    assert "sm_80 or later (PTX)" in artifact_gpu.needs(metadata)
    assert compiled.size_bytes() == path.stat().st_size
    with pytest.raises(ArtifactError, match="there is none here"):
        artifact.load(path)


@pytest.mark.parametrize(
    "here, built, ptx, ok",
    [
        ("sm_90", "sm_90", True, True), ("sm_90", "sm_80", True, True), ("sm_89", "sm_80", False, True),
        ("sm_90", "sm_80", False, False), ("sm_80", "sm_90", True, False), ("sm_86", "sm_89", True, False),
    ],
)  # fmt: skip
def test_cuda_which_gpu_runs_what(monkeypatch, here, built, ptx, ok):
    monkeypatch.setattr(artifact_gpu, "detect_gpu", lambda: dataclasses.replace(named_gpu(here), assumed=()))
    monkeypatch.setattr(artifact_gpu, "runtime_missing", lambda: None)
    gpu = {"arch": built, "ptx": ptx, "code": [0, 1]}
    if ok:
        artifact_gpu.check(Path("m.so"), gpu)
    else:
        with pytest.raises(ArtifactError, match=f"--arch {here}"):
            artifact_gpu.check(Path("m.so"), gpu)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cuda_tiles_are_copied_ahead(dtype):
    """In what a user gets, and in what tuning measures: not only where the tests compile a rule by themselves."""
    from tvmopt.registry import apply_rule, rules
    from tvmopt.tuning.worker import compile_kernel

    machine = named_gpu("sm_80")
    model = dataclasses.replace(from_module(torch.nn.Linear(512, 512), (torch.randn(2048, 512),)), dtype=dtype)
    compiled = build_variant(model, "manual", machine)
    assert "cp.async" in compiled.source
    (product,) = [kernel for kernel in lower_model(model, machine).kernels if kernel.flops]
    made = apply_rule(product, machine, rules("cuda"))
    assert "cp.async" in compile_kernel(machine.target(), made.schedule.mod).mod.imports[0].inspect_source()


@needs_nvcc
def test_cuda_fast_math_only_when_asked():
    source = 'extern "C" __global__ void k(float* x) { x[threadIdx.x] = __expf(x[0]) / x[1] + 1.0f; }'
    exact, fast = compile_source(source, "sm_80"), compile_source(source, "sm_80", fast_math=True)
    assert exact.kernels[0].name == "k" and exact.binary != fast.binary
    with pytest.raises(Exception, match="nvcc refuses the code for sm_80"):
        compile_source("nonsense", "sm_80")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False)


def test_cuda_targets():
    assert BuildOptions(target="cuda", arch="sm_89").machine().slug == "cuda-sm_89"
    assert BuildOptions(target=json.dumps({"kind": "cuda", "arch": "sm_86"})).machine().arch == "sm_86"
    for options, words in (
        (BuildOptions(target="cuda", arch="sm_12"), "choose one of"),
        (BuildOptions(target='{"kind": "cuda", "arch": "sm_80", "mcpu": "x"}'), "arch alone"),
    ):
        with pytest.raises(TargetError, match=words):
            options.machine()


@pytest.mark.slow
@needs_nvcc
def test_cuda_export_command(tmp_path):
    path = tmp_path / "digits.so"
    done = command(
        "tvmopt.export", "digits_cnn", "--target", "cuda", "--arch", "sm_90", "--dtype", "float16", "--variant",
        "original", "-o", str(path),
    )  # fmt: skip
    assert done.returncode == 0 and path.is_file(), done.stderr
    assert "to run it: a GPU of sm_90 or later" in done.stderr
    assert "not verified: no GPU of this kind is here" in done.stderr
    metadata = artifact.read_metadata(path)
    assert metadata["gpu"]["arch"] == "sm_90" and metadata["meta"]["dtype"] == "float16"


def test_cuda_tuning_without_a_gpu_says_what_to_do(refused):
    for arguments, words in (((), "--arch"), (("--arch", "sm_90"), "tuning for sm_90 measures candidates on the GPU")):
        status, said = refused(tune.main, "digits_cnn", "--target", "cuda", *arguments)
        assert status == 1 and words in said


def test_cuda_bench_without_a_gpu_says_what_to_do(refused):
    status, said = refused(bench.main, "digits_cnn", "--target", "cuda", "--arch", "sm_90", "--peers", "none")
    assert status == 1 and "bench/gpu/run.sh" in said


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cuda_resnet18(tmp_path, dtype):
    path = tmp_path / "resnet18.so"
    done = command(
        "tvmopt.export",
        "torchvision:resnet18",
        "--target",
        "cuda",
        "--arch",
        "sm_90",
        "--dtype",
        dtype,
        "-o",
        str(path),
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.cuda
@pytest.mark.parametrize("dtype, allowed", [("float32", 1e-4), ("float16", 2e-2)])
@pytest.mark.parametrize("graphs", [False, True])
def test_a_network_on_the_gpu(tmp_path, dtype, allowed, graphs):
    import tvmopt

    torch.manual_seed(0)
    module, inputs = Mixed().eval(), (torch.randn(2, 3, 12, 10),)
    wanted = module(*inputs)
    compiled = tvmopt.compile(
        module, inputs, target="cuda", variant="manual", dtype=dtype, cuda_graphs=graphs, log_dir=tmp_path
    )
    loaded = tvmopt.load(compiled.export(tmp_path / "m.so"))
    on_gpu = [x.cuda() for x in inputs]
    for made in (compiled, loaded):
        first, again = made(*on_gpu), made(*on_gpu)
        for ours, twice, theirs in zip(first, again, wanted, strict=True):
            assert ours.is_cuda and torch.equal(ours, twice) and ours.data_ptr() != twice.data_ptr()
            assert (ours.cpu() - theirs).abs().max() <= allowed * theirs.abs().max()
        numpy = made(*(x.numpy() for x in inputs))
        assert np.allclose(numpy[0], first[0].cpu().numpy(), rtol=1e-3, atol=1e-4)
        with pytest.raises(InputError, match="on the GPU"):
            made(*inputs)
