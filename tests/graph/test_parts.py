"""A batch in parts: when it pays, whose images may be parted, and that the parts are the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tvmopt
from tvmopt.graph import pipeline
from tvmopt.graph.memory import MemoryPlan
from tvmopt.graph.network import PARTS, Network
from tvmopt.graph.parts import has_a_batch, images_at_once, independent, part_of
from tvmopt.graph.pipeline import lower_model
from tvmopt.graph.steps import Step, Value
from tvmopt.machine import Machine, detect
from tvmopt.model import Model, from_module, load_model
from tvmopt.tuning.strategies import weight_bytes

BATCH = 6
MACHINE = Machine("llvm", "a machine", "znver4", "avx512", 2, 16, 32, 32 << 10, 1 << 20, 32 << 20)


def _network(steps: int, image_floats: int, weight_floats: int, batch: int = 32) -> Network:
    """A chain of kernels, between images of so many values each."""
    shape = (batch, image_floats)
    values = [Value("input", 0, shape, "float32"), *(Value("between", i, shape, "float32") for i in range(steps - 1))]
    values.append(Value("output", 0, shape, "float32"))
    chain = tuple(
        Step("kernel", (values[i], Value("weight", i, (weight_floats,), "float32")), (values[i + 1],))
        for i in range(steps)
    )
    return Network((values[0],), (values[-1],), chain, (), (), MemoryPlan((), 0))


def test_parts_fit_l3_where_memory_is_waited_for() -> None:
    # 2 MB of an image read and 2 written: 6 of them are 24 MB, three quarters of L3; 4 is the next that divides 32.
    network = _network(20, 2 << 18, 1000)
    assert images_at_once(network, {"kernel": 1000}, 32, MACHINE) == 4
    # Arithmetic hides what is moved: there is nothing to win.
    assert images_at_once(network, {"kernel": 40_000_000_000}, 32, MACHINE) == 32
    # Every part would read the weights again, and they do not stay in L3.
    assert images_at_once(_network(20, 2 << 18, 40_000_000), {"kernel": 1000}, 32, MACHINE) > 4
    # A kernel of its own reads and writes what is the caller's, wherever that lies.
    assert images_at_once(_network(1, 2 << 18, 1000), {"kernel": 1000}, 32, MACHINE) == 32
    # What fits as it is.
    assert images_at_once(_network(20, 1 << 10, 1000), {"kernel": 1000}, 32, MACHINE) == 32


class Everything(nn.Module):
    """Parts that begin anywhere: inputs of 5 x 7 x 7 and outputs of 10 floats are no multiple of 64 bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(5, 24, 3, padding=1)
        self.depthwise = nn.Conv2d(24, 24, 3, stride=2, padding=1, groups=24)
        self.pointwise = nn.Conv2d(48, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor, shift: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.conv(x)) + shift
        y = self.depthwise(y)
        z = self.pointwise(torch.cat([y, torch.sigmoid(y)], 1))
        return {"image": z, "same": x, "scores": self.head(z.mean((2, 3)))}


def _everything() -> tuple[Model, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    inputs = (torch.randn(BATCH, 5, 7, 7), torch.randn(BATCH, 24, 1, 1))
    return from_module(Everything().eval(), inputs), inputs


@pytest.mark.parametrize("size", [1, 2, 3])
def test_parts_are_the_whole(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "images_at_once", lambda *_: size)
    model, inputs = _everything()
    lowered = lower_model(model, detect())
    assert int(lowered.module.attrs[PARTS]) == BATCH // size
    assert all(kernel.calls % (BATCH // size) == 0 for kernel in lowered.kernels)
    # Another lowering of the same model has the same parts, without asking.
    monkeypatch.setattr(pipeline, "images_at_once", lambda *_: BATCH)
    assert int(lower_model(model, detect(), {"conv2d": "gemm"}, like=lowered).module.attrs[PARTS]) == BATCH // size
    monkeypatch.setattr(pipeline, "images_at_once", lambda *_: size)
    compiled = tvmopt.compile(model.module, inputs, variant="manual")
    exported = tvmopt.load(compiled.export(tmp_path / "parts.so"))
    for _ in range(2):
        given = tuple(torch.randn_like(x) for x in inputs)
        with torch.no_grad():
            wanted = model.module(*given)
        for made in (compiled(*given), exported(*given)):
            torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)
        arrays = compiled(*(x.numpy() for x in given))
        torch.testing.assert_close(torch.from_numpy(arrays["scores"]), wanted["scores"], rtol=1e-4, atol=1e-5)
    assert compiled.meta["workspace_bytes"] < BATCH * 24 * 7 * 7 * 4 * 2


class Mixed(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.scale = how, nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = x * self.scale
        if self.how == "neighbours":
            return x - x.roll(1, 0)
        if self.how == "mean":
            return torch.relu(x - x.mean(0))
        if self.how == "little":
            return x + 1e-5 * x.mean(0)
        if self.how == "refused" and len(x) != BATCH:
            raise ValueError("another batch")
        if self.how == "fixed":
            return x.reshape(BATCH, 12).relu()
        if self.how == "summed":
            return x, x.sum()
        return x.softmax(1)


@pytest.mark.parametrize("how", ["neighbours", "mean", "little", "refused", "fixed", "summed", "free"])
def test_only_images_that_do_not_depend_on_each_other_are_parted(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Zeros, of which every part is like the others.
    model = from_module(Mixed(how).eval(), (torch.zeros(BATCH, 3, 4),))
    assert independent(model, 2) == (how == "free")
    monkeypatch.setattr(pipeline, "images_at_once", lambda *_: 2)
    lowered = lower_model(model, detect())
    assert (lowered.part is not None) == (how == "free")
    x = torch.randn(BATCH, 3, 4)
    built = tvmopt.compile(model.module, x, variant="manual")(x)
    torch.testing.assert_close(built, model.module(x).detach() if how != "summed" else tuple(model.module(x)),
                               check_dtype=True)  # fmt: skip


def test_what_has_no_batch_to_part(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_a_batch(load_model("digits_cnn"))
    assert has_a_batch(load_model("digits_cnn", batch=4))
    indices = from_module(nn.Embedding(7, 4).eval(), (torch.zeros(4, 3, dtype=torch.long),))
    assert not has_a_batch(indices)
    two = from_module(nn.Bilinear(3, 3, 2).eval(), (torch.randn(4, 3), torch.randn(4, 3)))
    assert has_a_batch(two) and part_of(two, 2).batch == 2
    # TVM's own lowering is left as it is.
    monkeypatch.setattr(pipeline, "images_at_once", lambda *_: 1)
    assert lower_model(load_model("digits_cnn", batch=4), detect(), variant="original").part is None
    assert lower_model(load_model("digits_cnn", batch=4), detect()).part is not None


def test_weights_are_counted_once_however_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = _everything()
    monkeypatch.setattr(pipeline, "images_at_once", lambda *_: BATCH)
    whole = lower_model(model, detect(), {"conv2d": "direct"})
    monkeypatch.setattr(pipeline, "images_at_once", lambda *_: 2)
    parted = lower_model(model, detect(), {"conv2d": "direct"})
    assert parted.part is not None and whole.part is None
    assert weight_bytes(parted) == weight_bytes(whole) > 0
