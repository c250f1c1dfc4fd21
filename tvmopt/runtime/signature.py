"""What a compiled model takes and returns: shapes and dtypes of its tensors, and the structure they are returned in.

The structure is kept as JSON, so that an exported artifact gives back what the model gave: an int is the tensor of
that index, `{"tuple": [...]}`, `{"list": [...]}`, `{"dict": [[key, ...], ...]}` and
`{"namedtuple": [name, fields, [...]]}` hold others, `{"value": v}` is no tensor.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tvmopt.errors import ModelError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Structure = Any


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: its name, its static shape, its dtype as numpy writes it ("float32")."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a compiled model, flat, and how the outputs are put together.

    `constant` names the outputs that do not depend on any input: the executable returns its own constant for them,
    which must not get into a caller's hands. `unflatten` rebuilds the model's own classes; it does not survive an
    export, after which `structure` does it with plain tuples, dicts and named tuples.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    structure: Structure = 0
    constant: frozenset[int] = frozenset()
    unflatten: Callable[[Sequence[Any]], Any] | None = field(default=None, compare=False)

    def rebuild(self, tensors: Sequence[Any]) -> Any:
        """The model's return value from its flat output tensors."""
        if self.unflatten is not None:
            return self.unflatten(tensors)
        return _rebuild(self.structure, tensors)

    def to_json(self) -> dict[str, Any]:
        """Plain data for an artifact's metadata."""

        def specs(items: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
            return [{"name": item.name, "shape": list(item.shape), "dtype": item.dtype} for item in items]

        return {
            "inputs": specs(self.inputs),
            "outputs": specs(self.outputs),
            "structure": self.structure,
            "constant": sorted(self.constant),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Signature:
        """The inverse of `to_json`; raises KeyError, TypeError or ValueError on anything else."""

        def specs(items: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
            return tuple(
                TensorSpec(str(item["name"]), tuple(int(size) for size in item["shape"]), str(item["dtype"]))
                for item in items
            )

        return cls(
            specs(data["inputs"]),
            specs(data["outputs"]),
            data["structure"],
            frozenset(int(index) for index in data["constant"]),
        )

    @classmethod
    def from_exported(cls, program: ExportedProgram) -> Signature:
        """The signature of an exported program.

        Raises:
            ModelError: an input that is no tensor, or no tensor among the outputs.
        """
        from torch.utils import _pytree as pytree

        nodes = {node.name: node for node in program.graph.nodes}
        inputs = []
        for name in program.graph_signature.user_inputs:
            if not isinstance(name, str) or not hasattr(nodes[name].meta.get("val"), "shape"):
                raise ModelError(f"input {name!r} of the model is not a tensor; bind it inside the model instead")
            inputs.append(_spec(name, nodes[name].meta["val"]))

        outputs: list[TensorSpec] = []
        leaves: list[Structure] = []
        constant: set[int] = set()
        varying = _depending_on(program.graph.nodes, set(program.graph_signature.user_inputs))
        for spec in program.graph_signature.output_specs:
            if spec.kind.name not in ("USER_OUTPUT", "LOSS_OUTPUT"):
                continue
            if type(spec.arg).__name__ != "TensorArgument":
                leaves.append({"value": getattr(spec.arg, "value", None)})
                continue
            if spec.arg.name not in varying:
                constant.add(len(outputs))
            leaves.append(len(outputs))
            outputs.append(_spec(f"output{len(outputs)}", nodes[spec.arg.name].meta["val"]))
        if not outputs:
            raise ModelError("the model returns no tensor")

        # Boxed, because pytree would look inside a leaf that is a dict.
        out_spec = program.call_spec.out_spec
        tree = pytree.tree_unflatten([_Leaf(leaf) for leaf in leaves], out_spec) if out_spec else _Leaf(leaves[0])
        structure, exact = _structure(tree)

        def unflatten(tensors: Sequence[Any]) -> Any:
            return pytree.tree_unflatten(
                [leaf["value"] if isinstance(leaf, dict) else tensors[leaf] for leaf in leaves], out_spec
            )

        return cls(tuple(inputs), tuple(outputs), structure, frozenset(constant), None if exact else unflatten)


@dataclass(frozen=True)
class _Leaf:
    value: Structure


def _spec(name: str, value: Any) -> TensorSpec:
    return TensorSpec(name, tuple(int(size) for size in value.shape), str(value.dtype).removeprefix("torch."))


def _depending_on(nodes: Any, names: set[str]) -> set[str]:
    """Names of the graph's nodes that depend on one of those named."""
    found = set(names)
    for node in nodes:
        if any(argument.name in found for argument in node.all_input_nodes):
            found.add(node.name)
    return found


def _structure(tree: Any) -> tuple[Structure, bool]:
    """A tree of `_Leaf` as plain data, and whether `_rebuild` gives back its very classes."""
    if isinstance(tree, _Leaf):
        return tree.value, True
    if isinstance(tree, dict):
        parts = [(key, *_structure(value)) for key, value in tree.items()]
        if not all(isinstance(key, str | int) for key in tree):
            raise ModelError("the model returns a dict whose keys are neither str nor int")
        return {"dict": [[key, part] for key, part, _ in parts]}, type(tree) is dict and all(e for _, _, e in parts)
    if isinstance(tree, tuple | list):
        items = [_structure(value) for value in tree]
        plain, exact = [part for part, _ in items], all(e for _, e in items)
        fields = getattr(tree, "_fields", None)
        if fields is not None:
            return {"namedtuple": [type(tree).__name__, list(fields), plain]}, False
        kind = "tuple" if isinstance(tree, tuple) else "list"
        return {kind: plain}, exact and type(tree) in (tuple, list)
    # A class registered with pytree, a dataclass say: its fields in order.
    members = vars(tree) if hasattr(tree, "__dict__") else {}
    if not members:
        raise ModelError(f"the model returns a {type(tree).__name__}; return tensors in tuples, lists or dicts")
    return _structure(dict(members))[0], False


def _rebuild(structure: Structure, tensors: Sequence[Any]) -> Any:
    if isinstance(structure, int):
        return tensors[structure]
    ((kind, content),) = structure.items()
    if kind == "value":
        return content
    if kind == "dict":
        return {key: _rebuild(part, tensors) for key, part in content}
    if kind == "namedtuple":
        name, fields, parts = content
        return collections.namedtuple(name, fields)(*(_rebuild(part, tensors) for part in parts))  # type: ignore[misc]
    parts = [_rebuild(part, tensors) for part in content]
    return tuple(parts) if kind == "tuple" else parts
