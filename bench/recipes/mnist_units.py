"""Weights against whole units: how much of a dense network can go before it fails, without any fine-tuning.

The bias-free network 784-1000-1000-500-200-10 is trained on MNIST once. Then each sparsity is tried on the same
weights: the smallest weights of each layer, or the units (outputs of a layer) of the smallest L2 norm. The last layer
stays whole in both, as in the published experiment. The program finds where each curve is flat to, and its knee.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import Settings
from .common import document, mixes_precision, mnist, say, seeded, show, trained, work_directory
from .knee import flat_to, knee

if TYPE_CHECKING:
    from torch import nn

    from tvmopt.data import Dataset

SPARSITIES = (0.0, 0.25, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99)
METHODS = {"weights": "unstructured", "units": "unit"}
# Method -> share up to which the published curve is flat, and its knee.
PUBLISHED = {"weights": (0.8, 0.9), "units": (0.3, 0.6)}
_LAST = "layers.4"


def run(settings: Settings) -> int:
    """Trains, prunes, prints the table and the knees, draws the plot beside the JSON file.

    Raises:
        DataError: MNIST is not where `settings.data_dir` says.
    """
    from tvmopt.machine import configure_threads
    from tvmopt.models.mnist_pruning import UnitsMLP

    training, test = mnist(settings)
    machine = settings.options.cpu("this recipe")
    configure_threads(machine.cores)
    epochs = settings.epochs or (2 if settings.quick else 12)
    with work_directory(settings) as folder:
        dense = seeded(UnitsMLP)
        trained(dense, folder / "mnist-units.pt", training, epochs=epochs, lr=1e-3, bfloat16=mixes_precision())
        curves = {name: [_top1(dense, method, share, test) for share in SPARSITIES] for name, method in METHODS.items()}
    found = {name: (flat_to(SPARSITIES, curve), knee(SPARSITIES, curve)) for name, curve in curves.items()}
    recipe = {
        "name": "mnist-units", "dataset": "mnist", "epochs": epochs, "quick": settings.quick,
        "sparsities": list(SPARSITIES), "top1": curves,
        "flat_to": {name: flat for name, (flat, _) in found.items()},
        "knee": {name: bend for name, (_, bend) in found.items()},
        "published": {name: {"flat_to": flat, "knee": bend} for name, (flat, bend) in PUBLISHED.items()},
    }  # fmt: skip
    document(settings, machine, recipe, [])
    if settings.json is not None:
        plot(curves, found, settings.json.with_suffix(".png"))
    print(f"784-1000-1000-500-200-10 without biases on MNIST, top-1 of {len(test)}, no fine-tuning")
    lines = [["sparsity", *METHODS]]
    lines += [
        [f"{share:.1%}", *(f"{curves[name][row]:.2%}" for name in METHODS)] for row, share in enumerate(SPARSITIES)
    ]
    show(lines, settings.markdown)
    print()
    for name, (flat, bend) in found.items():
        known = PUBLISHED[name]
        print(f"{name}: flat to {flat:.1%} (published {known[0]:.0%}), knee at {bend:.1%} (published {known[1]:.0%})")
    return 0


def _top1(dense: nn.Module, method: str, sparsity: float, test: Dataset) -> float:
    from tvmopt.compress.pruning import prune
    from tvmopt.training.loop import evaluate

    module = copy.deepcopy(dense).eval()
    prune(module, method, sparsity, (test.images[:1],), skip=[_LAST])
    return evaluate(module, test)


def plot(curves: dict[str, list[float]], found: dict[str, tuple[float, float]], path: Path) -> None:
    """Draws the curves with their knees as a PNG; without matplotlib it says so and draws nothing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("no plot: pip install 'tvmopt[report]'")
        return
    figure: Any = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    # The upper curve's label above it, the lower one's below: they do not cross each other's line.
    offsets = dict(zip(curves, ((-30, 12), (-75, -22)), strict=True))
    for name, curve in curves.items():
        percent = [[value * 100 for value in values] for values in (SPARSITIES, curve)]
        (line,) = axes.plot(*percent, marker="o", label=name)
        bend = found[name][1]
        at = curve[SPARSITIES.index(bend)] * 100
        axes.plot([bend * 100], [at], marker="o", markersize=14, markerfacecolor="none", color=line.get_color())
        axes.annotate(f"knee {bend:.1%}", (bend * 100, at), xytext=offsets[name], textcoords="offset points")
    axes.set(xlabel="sparsity, %", ylabel="top-1, %", ylim=(0, 112))
    axes.set_title("Weight and unit pruning on MNIST, no fine-tuning")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
