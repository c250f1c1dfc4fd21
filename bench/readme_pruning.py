"""The README's tables on pruning: what the recipes that prune found, from their JSON files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvmopt.errors import DataError

from . import commands, results, sparsity_table
from .recipes import cifar_resnet20, mnist_prune, mnist_units, resnet18_sparse, sparse_kernels


def mnist_cnn(files: Sequence[Path]) -> str:
    """The recipe mnist-prune: a row a method and sparsity, and whether all are as good as what was published."""
    document, recipe = _recipe(files, "mnist-prune")
    cells = {(cell["method"], cell["sparsity"]): cell for cell in recipe["cells"]}
    dense = recipe["dense"]
    behind, unmet = mnist_prune.worse(cells), mnist_prune.unmet(cells)
    verdict = f"Below the published figure: {'; '.join(behind) or 'none'}. "
    verdict += f"Figures that nothing of ours is as good as: {', '.join(unmet) or 'none'}"
    said = (
        f"`{commands.of_recipe(document)}`: before pruning top-1 {dense['top1']:.2%}, {dense['params']:,} parameters, "
        f"{dense['bytes'] / 2**20:.2f} MiB. {verdict}."
    )
    return "\n\n".join([_lines(mnist_prune.table(cells, dense["bytes"])), said])


def mnist_mlp(files: Sequence[Path]) -> str:
    """The recipe mnist-units: a row a sparsity, and where each curve is flat to and bends."""
    document, recipe = _recipe(files, "mnist-units")
    lines = [["sparsity", *(f"{share:.4g}%" for share in (value * 100 for value in recipe["sparsities"]))]]
    lines += [[name, *(f"{value:.2%}" for value in recipe["top1"][name])] for name in mnist_units.METHODS]
    words = []
    for name in mnist_units.METHODS:
        known = recipe["published"][name]
        words.append(
            f"{name} flat to {recipe['flat_to'][name]:.0%} (published {known['flat_to']:.0%}), knee at "
            f"{recipe['knee'][name]:.1%} (published {known['knee']:.0%})"
        )
    return "\n\n".join([_lines(lines), f"`{commands.of_recipe(document)}`: {'; '.join(words)}."])


def cifar(files: Sequence[Path]) -> str:
    """The recipe cifar-resnet20: a row a network and variant, and how far each is below dense."""
    document, recipe = _recipe(files, "cifar-resnet20")
    rows, facts = document["results"], recipe["networks"]
    said = "; ".join(cifar_resnet20.behind(rows))
    text = f"`{commands.of_recipe(document)}`: {recipe['epochs']} epochs of fine-tuning each; {said}."
    return "\n\n".join([_lines(cifar_resnet20.lines(rows, facts)), text])


def resnet18(files: Sequence[Path]) -> str:
    """The recipe resnet18-sparse: a row a network, and whether the sparse ones are as fast as is wanted."""
    document, _ = _recipe(files, "resnet18-sparse")
    said = "; ".join(resnet18_sparse.verdicts(document["results"]))
    table = _lines(resnet18_sparse.lines(document["results"]))
    return "\n\n".join([table, f"`{commands.of_recipe(document)}`: {said}."])


def kernels(files: Sequence[Path]) -> str:
    """The recipes of sparse kernels: a row a layer, and the medians over those bound by arithmetic and by memory."""
    parts = []
    for path in files:
        document = results.read(path)
        by_layer: dict[str, list[dict[str, Any]]] = {}
        for row in document["results"]:
            by_layer.setdefault(row["model"], []).append(row)
        if not all(any(map(sparsity_table.is_sparse, rows)) for rows in by_layer.values()) or not by_layer:
            raise DataError(f"{path} is no result of the recipe sparse-kernels: name a file of its --json")
        shares = sorted({row["sparsity"] for row in document["results"] if sparsity_table.is_sparse(row)})
        lines = [sparse_kernels.header(shares), *(sparse_kernels.line(rows, shares) for rows in by_layer.values())]
        said = [f"- {line}" for line in sparsity_table.summary(document["results"])]
        parts += [_lines(lines), f"`{commands.of_recipe(document)}`:", "\n".join(said)]
    return "\n\n".join(parts)


def _recipe(files: Sequence[Path], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The only file, and what its recipe found."""
    if len(files) != 1:
        raise DataError(f"a table of {name} is of one file, not {len(files)}")
    document = results.read(files[0])
    recipe = document["environment"].get("recipe") or {}
    if recipe.get("name") != name:
        raise DataError(f"{files[0]} is no result of the recipe {name}: name a file of its --json")
    return document, recipe


def _lines(lines: Sequence[Sequence[str]]) -> str:
    header, *body = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *body])
