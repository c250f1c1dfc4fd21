"""What pruning reached, in lines to print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvmopt.compress.size import Layer, Size


def summary(layers: Sequence[Layer], before: Size, after: Size, accuracy: Mapping[str, float]) -> list[str]:
    """The lines that say what was reached: layer by layer, overall, accuracy at each stage, sizes."""
    rows = [["layer", "shape", "weights", "zeros"]]
    rows += [
        [layer.name, "x".join(map(str, layer.shape)), f"{layer.params:,}", f"{layer.sparsity:.1%}"]
        for layer in layers
    ]
    rows.append(["all parameters", "", f"{after.params:,}", f"{after.sparsity:.1%}"])
    lines = aligned(rows)
    if after.params != before.params:
        removed = 1 - after.params / before.params
        lines.append(f"parameters: {before.params:,} -> {after.params:,} ({removed:.1%} removed)")
    if accuracy:
        words = {"before": "before", "pruned": "pruned, not yet fine-tuned", "after": "after"}
        lines.append("top-1: " + ", ".join(f"{words[at]} {top1:.2%}" for at, top1 in accuracy.items()))
    lines.append(
        f"size: dense {before.dense_bytes:,} -> {after.dense_bytes:,} bytes, compressed sparse "
        f"{before.compressed_bytes:,} -> {after.compressed_bytes:,}, zipped {before.zipped_bytes:,} -> "
        f"{after.zipped_bytes:,} ({before.zipped_bytes / after.zipped_bytes:.2f}x smaller)"
    )
    return lines


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns under each other, the first set left and the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = [
        [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    ]
    return ["  ".join(row).rstrip() for row in texts]
