"""bench/gpu/run.sh, without a GPU: what its stages would run is there, and in an order that leads somewhere."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as bench_command
from bench import kernel_cases, kernels, kernels_gpu_sparse
from bench.cuda_proof import __main__ as cuda_proof
from tvmopt import tune
from tvmopt.machine import named_gpu
from tvmopt.model import load_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("stage", ["check", "kernels", "networks", "tune"])
def test_stages_print_their_commands(stage):
    done = subprocess.run([ROOT / "bench/gpu/run.sh", "--dry-run", stage], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""
    names = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert names and len(set(names)) == len(names)


def commands(stage: str, script: Path = ROOT / "bench/gpu/run.sh") -> dict[str, list[str]]:
    """The words of each of a stage's commands, by its name."""
    done = subprocess.run([script, "--dry-run", stage], capture_output=True, text=True, check=True)
    return {name: words.split() for name, _, words in (line.partition(": ") for line in done.stdout.splitlines())}


def parsed(asked: dict[str, list[str]]) -> dict[str, Any]:
    """The arguments of commands, as the commands take them."""
    parsers = {"bench": bench_command, "bench.kernels": kernels, "bench.cuda_proof": cuda_proof, "tvmopt.tune": tune}
    found = {}
    for name, words in asked.items():
        python, module = words.index("-m") - 1, words.index("-m") + 1
        assert words[python] == "python3"
        if words[module] in parsers:
            found[name] = parsers[words[module]].parser().parse_args(words[module + 1 :])
    return found


def test_cuda_stages_ask_for_what_there_is():
    """Options that no command has would be found on a GPU's time only."""
    asked = {name: args for stage in ("check", "kernels", "tune", "networks")
             for name, args in parsed(commands(stage)).items()}  # fmt: skip
    for op in ("gemm", "conv2d"):
        sparse = asked[f"kernel-sparse-{op}"]
        assert sparse.op == (op,) and sparse.sparsity == (0.5, 0.8, 0.9) and sparse.dtype == ("float32",)
    # Every product has a sparse kernel, not every convolution.
    wanted = [("conv2d", shape) for shape in sparse.shape]
    assert kernels_gpu_sparse.supported(wanted, named_gpu("sm_90")) == wanted
    pruned = asked["resnet50-float32-b32-pruned"]
    assert pruned.sparsity == (0.0, 0.8, 0.9) and pruned.method == "block" and pruned.batch == 32


def test_cuda_every_rule_is_checked_and_wgmma_by_itself():
    checked = parsed(commands("check"))
    assert {*checked["check-rules"].rule, *checked["check-rules-wgmma"].rule} == set(cuda_proof.RULES)
    assert "wgmma" not in checked["check-rules"].rule
    assert next(iter(commands("check"))) == "check-wgmma"
    watched = [args for name, args in checked.items() if "racecheck" in name or "memcheck" in name]
    assert len(watched) == 4 and all(args.limit == 1 and len(args.rule) < 3 for args in watched)


def test_cuda_shapes_of_kernels_are_of_their_operators():
    for name, args in parsed(commands("kernels")).items():
        if name.startswith("kernel-"):
            assert set(args.dtype) <= {"float32", "float16", "bfloat16"}
            for shape in args.shape or ():
                kernel_cases._sizes(shape.split(",")[0], 4 if args.op == ("conv2d",) else 3)


def test_cuda_every_network_is_tuned_as_it_is_measured():
    def case(args: Any, model: str) -> tuple[Any, ...]:
        return model, args.dtype, args.batch

    tuned = {case(args, args.model) for args in parsed(commands("tune")).values()}
    measured = {case(args, *args.models): name for name, args in parsed(commands("networks")).items()
                if "pruned" not in name}  # fmt: skip
    assert len(tuned) == 12 and tuned == set(measured)


@pytest.mark.slow
def test_cuda_what_was_tuned_since_is_measured_again(tmp_path):
    """A log of the name that tuning gives it is found."""
    script = tmp_path / "bench/gpu/run.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / "bench/gpu/run.sh", script)
    assert not any("tuned" in name for stage in ("kernels", "networks") for name in commands(stage, script))
    shape = "32x64x56x56,64,3,1,1"
    kernel = load_model(f"{kernel_cases.__file__}:conv2d-{shape}", dtype="float16")
    logs = [load_model("torchvision:resnet18", batch=32, dtype="float16").log_name, "resnet50", kernel.log_name]
    for log in logs:
        (tmp_path / "tuning_logs/cuda-sm_90" / log).mkdir(parents=True)
        (tmp_path / "tuning_logs/cuda-sm_90" / log / "manifest.json").touch()
    found = [name for name in commands("networks", script) if name.endswith("-tuned")]
    kinds = ("", "-graphs", "-inductor", "-max-autotune")
    assert sorted(found) == sorted(
        f"{case}{kind}-tuned" for case in ("resnet18-float16-b32", "resnet50-float32-b1") for kind in kinds
    )
    found = [name for name in commands("kernels", script) if name.endswith("-tuned")]
    assert found == [f"kernel-conv2d-{shape}-float16-tuned"]


def test_a_stage_that_is_none():
    assert subprocess.run([ROOT / "bench/gpu/run.sh", "all"], capture_output=True, check=False).returncode == 2
