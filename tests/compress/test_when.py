"""Sparsity over steps, pruning while training, resuming; sensitivity and what is allocated by it."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tvmopt.compress import allocation, sensitivity
from tvmopt.compress.methods import method_of
from tvmopt.compress.pruning import Finetuning, prune
from tvmopt.compress.schedule import Schedule
from tvmopt.data import Dataset, load_dataset
from tvmopt.errors import UsageError
from tvmopt.model import load_model
from tvmopt.training.loop import evaluate, train
from tvmopt.training.split import hold_back


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", split="train", limit=300)


def points(schedule: Schedule, final: float, steps: int) -> dict[int, float]:
    found = {step: schedule.sparsity(final, step, steps) for step in range(steps)}
    return {step: share for step, share in found.items() if share is not None}


def test_sparsity_over_steps() -> None:
    assert points(Schedule("one-shot"), 0.8, 100) == {0: 0.8}
    assert points(Schedule("constant", every=40), 0.8, 100) == {0: 0.8, 40: 0.8, 80: 0.8}
    cubic = points(Schedule("polynomial", every=10, end=0.5), 0.8, 100)
    assert list(cubic) == [0, 10, 20, 30, 40, 50] and cubic[0] == 0 and cubic[50] == 0.8
    # Zhu and Gupta (2017), equation 1, from 0 to 0.8 over 50 steps.
    assert cubic[20] == pytest.approx(0.8 + (0 - 0.8) * (1 - 20 / 50) ** 3)
    rounds = points(Schedule("iterative", rounds=3), 0.875, 9)
    assert list(rounds) == [0, 3, 6] and list(rounds.values()) == pytest.approx([0.5, 0.75, 0.875])
    early = points(Schedule("iterative", rounds=3, end=0.4), 0.875, 10)
    assert list(early) == [0, 2, 4] and early[4] == pytest.approx(0.875)
    with pytest.raises(UsageError, match="unknown schedule"):
        Schedule("sometimes")


@pytest.mark.parametrize("kind", ["one-shot", "constant", "polynomial", "iterative"])
@pytest.mark.parametrize("end", [None, 0.01, 0.5, 1.0])
def test_the_last_masks_have_the_whole_sparsity(kind: str, end: float | None) -> None:
    for steps in (1, 2, 3, 7, 51, 100):
        found = points(Schedule(kind, every=10, end=end), 0.8, steps)
        assert found[max(found)] == pytest.approx(0.8) and list(found.values()) == sorted(found.values())


@pytest.mark.parametrize("kind", ["one-shot", "constant", "polynomial", "iterative"])
def test_the_sparsity_is_there_after_training(kind: str, digits: Dataset) -> None:
    model = load_model("digits_cnn")
    module, stages = copy.deepcopy(model.module), []
    how = Finetuning(digits, 2, Schedule(kind, every=2, rounds=2), batch=64, validation=digits)
    epochs = prune(
        module, "block", 0.75, model.example_inputs, finetuning=how,
        after_pruning=lambda pruned: stages.append(evaluate(pruned, digits)),
    )  # fmt: skip
    assert len(epochs) == 2
    for name in ("conv2.0", "conv3.0", "hidden"):
        layer = module.get_submodule(name)
        assert float((layer.weight == 0).float().mean()) == pytest.approx(0.75, abs=0.01)
    if kind in ("one-shot", "constant"):
        assert evaluate(module, digits) > stages[0]
        assert evaluate(module, digits) == max(epoch.validation or 0 for epoch in epochs)
    else:
        assert not stages


@pytest.mark.slow
def test_interrupted_fine_tuning_goes_on(digits: Dataset, tmp_path: Path) -> None:
    model, ended = load_model("digits_cnn"), []

    def finetuned(checkpoint: Path | None, stop_after: int | None) -> torch.Tensor:
        def progress(epoch: object) -> None:
            ended.append(epoch)
            if len(ended) == stop_after:
                raise KeyboardInterrupt

        module = copy.deepcopy(model.module)
        how = Finetuning(
            digits, 3, Schedule("polynomial", every=1), validation=digits, checkpoint=checkpoint, progress=progress
        )
        prune(module, "unstructured", 0.8, model.example_inputs, finetuning=how)
        return module.get_submodule("hidden").weight.detach()

    whole = finetuned(None, None)
    ended.clear()
    with pytest.raises(KeyboardInterrupt):
        finetuned(tmp_path / "c.ckpt", 1)
    again = finetuned(tmp_path / "c.ckpt", None)
    assert len(ended) == 3
    torch.testing.assert_close(again, whole, rtol=1e-3, atol=1e-4)
    assert torch.equal(again == 0, whole == 0)


def test_the_best_epoch_is_kept(digits: Dataset) -> None:
    module = copy.deepcopy(load_model("digits_cnn").module)

    def spoil(step: int, steps: int) -> None:
        # The second half of training gets weights that are of no use.
        if step >= steps // 2:
            with torch.no_grad():
                module.get_submodule("head").weight.zero_()

    history = train(module, digits, epochs=4, validation=digits, best_from=1, before_step=spoil)
    best = max(epoch.validation or 0 for epoch in history)
    assert evaluate(module, digits) == best > (history[-1].validation or 0)
    with pytest.raises(UsageError, match="validation"):
        train(module, digits, epochs=1, best_from=1)


def test_held_back_images_take_no_part(digits: Dataset) -> None:
    rest, held = hold_back(digits, 50)
    assert len(rest) == 250 and len(held) == 50
    assert torch.equal(torch.cat([rest.labels, held.labels]).bincount(), digits.labels.bincount())


def test_a_scan_finds_the_layer_that_matters() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(8))
    inputs = torch.randn(64, 8)
    wanted = net(inputs).detach()

    def score(module: nn.Module) -> float:
        return 1 - float((module(inputs) - wanted).detach().square().mean() / wanted.square().mean())

    found = sensitivity.scan(net, method_of("unstructured"), [inputs], score, sparsities=[0.5, 0.875])
    # Of the unit matrix only zeros go up to 7/8.
    assert found["0"] == {0.0: 1.0, 0.5: 1.0, 0.875: 1.0} and found["1"][0.875] < found["1"][0.5] < 1
    assert torch.equal(net(inputs), wanted)
    shares = sensitivity.allocate(found, {"0": 64, "1": 64}, 0.7)
    assert shares["0"] > 0.7 > shares["1"] and sum(shares.values()) / 2 == pytest.approx(0.7, abs=1e-6)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 0.97])
def test_what_is_allocated_adds_up(sparsity: float) -> None:
    lines = {"a": (0.9, 0.9, 0.3), "b": (0.9, 0.8, 0.7), "c": (0.9, 0.2, 0.1)}
    found = {name: dict(zip((0.0, 0.5, 0.9), line, strict=True)) for name, line in lines.items()}
    params = {"a": 100, "b": 1000, "c": 10}
    shares = sensitivity.allocate(found, params, sparsity)
    total = sum(shares[name] * count for name, count in params.items()) / 1110
    assert total == pytest.approx(sparsity, abs=1e-3) and all(0 <= share < 1 for share in shares.values())
    with pytest.raises(UsageError, match=r"less than 0\.98"):
        sensitivity.allocate(found, params, 0.99)


def test_small_layers_keep_more_and_the_whole_adds_up() -> None:
    """A small layer keeps all before a wide one keeps a tenth; the densities are as the extents' sums by products."""
    shapes = {"stem": (16, 3, 3, 3), "small": (16, 16, 3, 3), "wide": (256, 256, 3, 3), "last": (10, 64)}
    for sparsity in (0.0, 0.5, 0.9, 0.97):
        shares = allocation.erdos_renyi(shapes, sparsity)
        count = {name: math.prod(shape) for name, shape in shapes.items()}
        zeros = sum(shares[name] * n for name, n in count.items()) / sum(count.values())
        assert zeros == pytest.approx(sparsity, abs=1e-6)
        assert all(0 <= share <= 0.98 + 1e-9 for share in shares.values())
        assert shares["stem"] <= shares["small"] <= shares["wide"]
    pair = allocation.erdos_renyi({"a": (64, 64, 3, 3), "b": (128, 128, 3, 3)}, 0.8)
    assert (1 - pair["a"]) / (1 - pair["b"]) == pytest.approx((134 / 36864) / (262 / 147456))
    half = allocation.erdos_renyi({"a": (64, 64, 3, 3), "b": (128, 128, 3, 3)}, 0.8, 0.5)
    assert (1 - half["a"]) / (1 - half["b"]) == pytest.approx(math.sqrt((134 / 36864) / (262 / 147456)))
    assert list(allocation.erdos_renyi(shapes, 0.8, 0.0).values()) == [pytest.approx(0.8)] * len(shapes)
    with pytest.raises(UsageError, match=r"less than 0\.98"):
        allocation.erdos_renyi(shapes, 0.99)
