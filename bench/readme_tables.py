"""What each kind of table in the README says of its result files: Markdown in, nothing typed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvmopt.errors import DataError

from . import commands, compare, kernel_table, readme_cuda, readme_pruning, results, statistics, table
from . import memory as resident
from .cases import PEER, VARIANTS
from .recipes import conv_vs_gemm

Row = dict[str, Any]

_MODEL_COLUMNS = {
    **{name: name for name in VARIANTS},
    f"{PEER}torch": "torch eager",
    f"{PEER}inductor": "Inductor",
    f"{PEER}onnxruntime": "ONNX Runtime",
    f"{PEER}openvino": "OpenVINO",
}
# What is set beside what, in one run: ours, and then what it has to beat.
_PAIRS = (("auto", "manual"), ("manual", f"{PEER}torch"))


def models(files: Sequence[Path]) -> str:
    """One row a model: the medians in ms, the fastest in bold; then the command of each file."""
    body: list[list[str]] = []
    made: list[str] = []
    for document in map(results.read, files):
        for rows in table.by_model(document["results"]).values():
            timed = {row["variant"]: row for row in rows}
            if len(timed) < len(rows):
                raise DataError(f"{rows[0]['model']} has a contender twice: a row of this table can't hold both")
            medians = [row["latency_ms"]["median"] for row in rows if row["latency_ms"]]
            cells = [_median(timed.get(name), min(medians, default=None)) for name in _MODEL_COLUMNS]
            body.append([f"`{rows[0]['model']}`", *cells, f"{len(made) + 1}"])
        made.append(f"{len(made) + 1}. `{commands.of_bench(document)}`")
    return "\n\n".join([_grid(["", *_MODEL_COLUMNS.values(), "run"], body), "\n".join(made)])


def _median(row: Row | None, best: float | None) -> str:
    if row is None or not row["latency_ms"]:
        return "not measured" if row is None else "failed"
    median = row["latency_ms"]["median"]
    text = table.milliseconds(median)
    return f"**{text}**" if median == best else text


def conclusions(files: Sequence[Path]) -> str:
    """One item a model: the bench's own last line, auto beside manual, manual beside eager, what is unstable."""
    items, versions = [], []
    for run, document in enumerate(map(results.read, files), 1):
        for rows in table.by_model(document["results"]).values():
            timed = {row["variant"]: row for row in rows if row["latency_ms"]}
            parts = [table.conclusion(rows)]
            parts += [_beside(timed[a], timed[b]) for a, b in _PAIRS if a in timed and b in timed]
            parts.append(f"{sum(row['unstable'] for row in rows)} of {len(rows)} medians are marked unstable")
            items.append(f"- Run {run}, {'; '.join(parts)}.")
        peers = [row["variant"][len(PEER) :] for row in document["results"] if row["variant"].startswith(PEER)]
        known = document["environment"].get("versions", {})
        versions += [f"{name} {known[name]}" for name in dict.fromkeys(peers) if name in known]
    if versions:
        items.append(f"- Peers: {', '.join(dict.fromkeys(versions))} (Inductor is torch's).")
    return "\n".join(items)


def _beside(new: Row, old: Row) -> str:
    (after, new_rounds), (before, old_rounds) = results.counted(new, old)
    found = statistics.ratio(after, new_rounds, before, old_rounds)
    said = compare.verdict(found, old_rounds, new_rounds)
    times = f"{found.value:.2f} of the time of {old['variant'].removeprefix(PEER)}"
    return f"{new['variant']} takes {times} (95%: {found.low:.2f} to {found.high:.2f}): {said}"


def kernels(files: Sequence[Path]) -> str:
    """One row a kernel, as manual: the range over all runs, the median of its shares of the roof, PyTorch's time."""
    runs: dict[tuple[str, str], dict[str, list[Row]]] = {}
    made: dict[str, None] = {}
    for document in map(results.read, files):
        for row in document["results"]:
            if "peak_fraction" not in row:
                raise DataError(f"{row['model']} is no single kernel: name files of python -m bench.kernels --json")
            runs.setdefault((row["op"], row["shape"]), {}).setdefault(row["variant"], []).append(row)
        made[f"`{commands.of_kernels(document)}`"] = None
    body = []
    for (op, shape), contenders in runs.items():
        rows = contenders.get("manual", [])
        if not rows:
            raise DataError(f"{op} {shape} was not timed as manual: leave it out, or measure it again")
        shares, over_all = ([row[name] for row in rows] for name in ("peak_fraction", "peak_fraction_all_turns"))
        share = _range(shares, ".0%")
        if len(rows) > 1:
            share += f", median of {len(rows)} runs {float(np.median(shares)):.0%}"
        if any(row["unstable"] for row in rows):
            share += f", {sum(row['unstable'] for row in rows)} of them unstable"
        speed = _range([row["gflops"] for row in rows], ".0f") if rows[0]["flops"] else ""
        bytes_ = _range([row["bytes_per_s"] * 1e-9 for row in rows], ".0f")
        theirs = [row["latency_ms"]["median"] for row in contenders.get(f"{PEER}torch", [])]
        ours = float(np.median([row["latency_ms"]["median"] for row in rows]))
        eager = f"{float(np.median(theirs)) / ours:.1f}x" if theirs else ""
        bound = rows[0].get("bound", "arithmetic")
        body.append([_kernel(op, shape), bound, speed, bytes_, share, _range(over_all, ".0%"), eager])
    peaks = [row["peak_gflops"] for contenders in runs.values() for rows in contenders.values() for row in rows]
    said = f"The peak measured in the same turns: {_range(peaks, '.0f')} GFLOP/s. "
    said += f"{len(files)} run{'s' if len(files) > 1 else ''} of {', '.join(made)}."
    header = ["kernel, as manual", "bound by", "GFLOP/s", "GB/s", "of the roof", "over all turns", "torch's time"]
    return "\n\n".join([_grid(header, body), said])


def kernel_list(files: Sequence[Path]) -> str:
    """A long list of kernels in a few lines: medians by operator, and which reach little of the roof."""
    items = []
    for document in map(results.read, files):
        rows = document["results"]
        if not rows or any("peak_fraction" not in row for row in rows):
            raise DataError("no single kernels: name files of python -m bench.kernels --json")
        items += [f"- `{commands.of_kernels(document)}`: {line}." for line in kernel_table.summary(rows)]
        # Winograd's operations are counted as a direct convolution's.
        plain = [row for row in rows if row["op"] == "conv2d" and row["peak_fraction"] <= 1.02]
        large = [row for row in rows if row["op"] == "gemm" and min(map(int, row["shape"].split("x"))) >= 512]
        for name, some in (("convolutions that are not Winograd's", plain), ("square products of 512 and up", large)):
            if some:
                median = float(np.median([row["peak_fraction"] for row in some]))
                items.append(f"- Of these, {len(some)} {name}: {median:.0%} of the roof.")
    return "\n".join(items)


def _kernel(op: str, shape: str) -> str:
    """A kernel's shape, as bench.kernels takes it, in words."""
    if op not in ("conv2d", "gemm"):
        return f"{op.replace('_', ' ')} {shape}"
    if op == "gemm":
        rows, depth, columns = shape.split("x")
        return f"product of {rows} x {depth} and {depth} x {columns} matrices"
    image, out, kernel, *rest = shape.split(",")
    batch, channels, height, width = image.split("x")
    stride, _, groups = [*rest, *["1", "0", "1"][len(rest) :]]
    more = [f"stride {stride}"] * (stride != "1") + [f"{groups} groups"] * (groups != "1")
    more += [f"batch {batch}"] * (batch != "1")
    words = [f"{kernel}x{kernel} convolution", f"{channels} to {out} channels", f"{height}x{width}", *more]
    return ", ".join(words)


def recipe(files: Sequence[Path]) -> str:
    """The recipe conv-vs-gemm: a row a variant, the published figures beside it, and what the recipe concludes."""
    parts = []
    for path in files:
        document = results.read(path)
        published = document["environment"].get("recipe")
        way = {f"conv2d={how}": method for method, how in conv_vs_gemm.METHODS.items()}
        rows = {(row["variant"], way.get(row["strategy"], "")): row for row in document["results"]}
        wanted = [(variant, method) for variant in VARIANTS for method in conv_vs_gemm.METHODS]
        if published is None or set(rows) != set(wanted):
            raise DataError(f"{path} is no result of the recipe conv-vs-gemm: name a file of its --json")
        header = ["", *(f"{method}, ms" for method in conv_vs_gemm.METHODS), "top-1"]
        header += [*(f"published {method}, ms" for method in conv_vs_gemm.METHODS), "published top-1"]
        body = []
        for variant in VARIANTS:
            ours = [_median(rows[variant, method], None) for method in conv_vs_gemm.METHODS]
            scores = [rows[variant, method]["accuracy"] for method in conv_vs_gemm.METHODS]
            top1 = dict.fromkeys(f"{score['top1']:.2%}" if score else "failed" for score in scores)
            times = [f"{published['published_ms'][f'{variant} {method}']:.3f}" for method in conv_vs_gemm.METHODS]
            known = published["published_top1"].get(variant)
            body.append([variant, *ours, ", ".join(top1), *times, "none" if known is None else f"{known:.2%}"])
        said = conv_vs_gemm.verdict(rows)[0]
        parts += [_grid(header, body), f"`{commands.of_recipe(document)}`: {said}."]
    return "\n\n".join(parts)


def tuning(files: Sequence[Path]) -> str:
    """One row a model's log: how many candidates, how long, and what auto is beside manual in turns at its end."""
    body = []
    for path in files:
        try:
            log = json.loads(path.read_text())
            spec, end = log["model"]["spec"], log["network"] or {}
            ratio = f"{1 / end['ratio']:.2f}x as fast, {end['kept']} kept" if end.get("ratio") else "not measured"
            command = f"python -m tvmopt.tune {'' if spec == 'digits_cnn' else spec}".strip()
            body.append([f"`{spec}`", str(log["trials"]), f"{log['tuning_s']:.0f}", ratio, f"`{command}`"])
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: no manifest.json of a tuning log: {error}") from error
    return _grid(["", "candidates", "seconds", "auto beside manual, turn by turn at the end", "command"], body)


def memory(files: Sequence[Path]) -> str:
    """Resident memory of deployed networks: a row a model, and what the runtimes hold by themselves."""
    parts = []
    for path in files:
        environment = results.read(path)["environment"]
        if "memory" not in environment:
            raise DataError(f"{path} is no result of bench.memory: name a file of its --json")
        rows, command = environment["memory"], environment["command"]
        header, *body = resident.lines(rows)
        said = f"`{command}`. The runtimes by themselves, once imported: {resident.runtimes(rows)}."
        parts += [_grid(header, body), said]
    return "\n\n".join(parts)


def _range(values: Sequence[float], form: str) -> str:
    """`88 to 93%`, and one figure where both are the same in print."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low.removesuffix('%')} to {high}"


def _grid(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines).replace("|  |", "| |")


# Kind -> what makes its Markdown from its files.
KINDS: dict[str, Callable[[Sequence[Path]], str]] = {
    "models": models, "conclusions": conclusions, "kernels": kernels, "kernel-list": kernel_list, "recipe": recipe,
    "tuning": tuning, "memory": memory, "mnist-prune": readme_pruning.mnist_cnn,
    "mnist-units": readme_pruning.mnist_mlp, "cifar-resnet20": readme_pruning.cifar,
    "resnet18-sparse": readme_pruning.resnet18, "sparse-kernels": readme_pruning.kernels,
    "cuda-proof": readme_cuda.proof,
}  # fmt: skip
