"""A pruned network as a file: what it says of itself, that it is a model spec, and what damage is answered with."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from tvmopt.compress import saved
from tvmopt.compress.pruning import prune
from tvmopt.compress.size import compressed_bytes, layer_sizes, size_of
from tvmopt.errors import ModelError, OutputError
from tvmopt.model import load_model


@pytest.mark.parametrize(("method", "sparsity"), [("block", 0.8), ("2:4", None), ("unstructured", 0.9)])
def test_the_file_is_a_model_and_says_how_it_was_pruned(method: str, sparsity: float | None, tmp_path: Path) -> None:
    model, path = load_model("digits_cnn"), tmp_path / "pruned.pt2"
    module = copy.deepcopy(model.module)
    prune(module, method, sparsity, model.example_inputs)
    record = saved.record_of(module, method, sparsity or 0.5, {"before": 0.98, "after": 0.5}, 38474)
    saved.save(module, model.example_inputs, path, record)
    loaded = load_model(str(path))
    torch.testing.assert_close(loaded.module(*model.example_inputs), module(*model.example_inputs))
    again = saved.read(loaded.extra)
    assert again is not None and (again.method, again.sparsity) == (method, sparsity or 0.5)
    assert again.layers == {layer.name: layer.sparsity for layer in layer_sizes(module)}
    assert again.accuracy == {"before": 0.98, "after": 0.5} and again.dense_params == 38474
    assert 0 < again.overall < (sparsity or 0.5) + 0.01
    for name, mask in again.masks.items():
        assert torch.equal(mask, module.get_submodule(name).weight != 0)
    assert set(again.masks) == {name for name, share in again.layers.items() if share}
    assert list(tmp_path.iterdir()) == [path]


def test_zeros_take_no_place_on_disk_and_torch_reads_the_file(tmp_path: Path) -> None:
    model, sizes = load_model("digits_cnn"), []
    for number, share in enumerate((0.0, 0.5, 0.9)):
        module, path = copy.deepcopy(model.module), tmp_path / f"{number}.pt2"
        prune(module, "unstructured", share, model.example_inputs)
        saved.save(module, model.example_inputs, path, saved.record_of(module, "unstructured", share, {}, 38474))
        sizes.append(path.stat().st_size)
        program = torch.export.load(path)
        assert torch.equal(program.state_dict["hidden.weight"], module.get_submodule("hidden").weight)
        plain = tmp_path / "plain.pt2"
        torch.export.save(torch.export.export(module, model.example_inputs), plain)
        assert sizes[-1] < plain.stat().st_size
    assert sizes[2] < 0.6 * sizes[1] < 0.6 * sizes[0]


def test_files_of_before_that_are_not_deflated_load(tmp_path: Path) -> None:
    model, path = load_model("digits_cnn"), tmp_path / "old.pt2"
    old = {"format": 1, "method": "block-16x1", "sparsity": 0.5, "overall_sparsity": 0.4, "layers": {"hidden": 0.5},
           "accuracy": {}, "dense_params": 1, "masks": {}}  # fmt: skip
    program = torch.export.export(model.module, model.example_inputs)
    torch.export.save(program, path, extra_files={saved.FILE: json.dumps(old)})
    record = saved.read(load_model(str(path)).extra)
    assert record is not None and record.layers == {"hidden": 0.5}


def test_a_masked_filter_is_saved_with_its_batch_norm(tmp_path: Path) -> None:
    model, path = load_model("digits_cnn"), tmp_path / "filters.pt2"
    module = copy.deepcopy(model.module)
    prune(module, "filter-l2", 0.5, model.example_inputs, only=["conv2.0"])
    norm = next(one for name, one in module.named_modules() if name == "conv2.1")
    saved.save(module, model.example_inputs, path, saved.record_of(module, "filter-l2", 0.5, {}, 38474))
    loaded = load_model(str(path))
    torch.testing.assert_close(loaded.module(*model.example_inputs), module(*model.example_inputs))
    record = saved.read(loaded.extra)
    assert record is not None and set(record.masks) == {"conv2.0", "conv2.1"}
    assert torch.equal(record.masks["conv2.1"], norm.weight != 0) and int(record.masks["conv2.1"].sum()) == 16


def test_a_smaller_network_comes_back_whole(tmp_path: Path) -> None:
    model, path = load_model("digits_cnn"), tmp_path / "small.pt2"
    module = copy.deepcopy(model.module)
    prune(module, "structural", 0.5, model.example_inputs)
    saved.save(module, model.example_inputs, path, saved.record_of(module, "structural-l2", 0.5, {}, 38474))
    loaded = load_model(str(path))
    assert sum(p.numel() for p in loaded.module.parameters()) == 9898
    torch.testing.assert_close(loaded.module(*model.example_inputs), module(*model.example_inputs))
    record = saved.read(loaded.extra)
    assert record is not None and record.masks == {} and record.overall == 0


def test_other_programs_have_no_record_and_damage_is_one_line() -> None:
    assert saved.read({}) is None
    for text in ("{", "[]", json.dumps({"format": 1}), json.dumps({"format": 1, "method": "block", "masks": {"a": 1}})):
        with pytest.raises(ModelError, match="damaged"):
            saved.read({saved.FILE: text})
    with pytest.raises(ModelError, match="has format 9"):
        saved.read({saved.FILE: json.dumps({"format": 9})})


def test_an_unwritable_file_is_one_line(tmp_path: Path) -> None:
    model = load_model("digits_cnn")
    record = saved.record_of(model.module, "block", 0.0, {}, 1)
    with pytest.raises(OutputError, match="cannot be written"):
        saved.save(model.module, model.example_inputs, tmp_path / "no" / "x.pt2", record)


def test_bytes_by_hand() -> None:
    assert compressed_bytes(torch.ones(4, 100)) == 1600
    half = torch.ones(4, 100)
    half[:, ::2] = 0
    # A bitmap of 400 bits and 200 values.
    assert compressed_bytes(half) == 50 + 800
    few = torch.zeros(4, 100)
    few[0, 0] = 1
    # Five row pointers, one column index, one value.
    assert compressed_bytes(few) == 20 + 2 + 4
    net = torch.nn.Linear(100, 4, bias=False)
    net.weight.data = half
    size = size_of(net)
    assert (size.params, size.nonzero, size.sparsity) == (400, 200, 0.5)
    assert (size.dense_bytes, size.compressed_bytes) == (1600, 850) and size.zipped_bytes < 100
