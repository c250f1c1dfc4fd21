"""Exported programs: they load, and nothing that stands in one is ever executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tvmopt.errors import InputError, ModelError
from tvmopt.model import load_model
from tvmopt.models.digits_cnn import DigitsCNN
from tvmopt.pt2 import duplicate


class Canary:
    """Unpickled, it creates the file it is given: the sign that code from the archive was run."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> object:
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    program = torch.export.export(DigitsCNN().eval(), (torch.randn(2, 1, 8, 8),))
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    torch.export.save(program, path, extra_files={"method": "none"})
    return path


def rewrite(source: Path, target: Path, change: dict[str, Callable[[bytes], bytes]]) -> Path:
    """Copies the archive with some records changed or, where there were none, added."""
    reader = torch._C.PyTorchFileReader(str(source))
    records = {name: reader.get_record(name) for name in reader.get_all_records() if not name.startswith(".data/")}
    for name, function in change.items():
        records[name] = function(records.get(name, b""))
    writer = torch._C.PyTorchFileWriter(str(target))
    for name, content in records.items():
        if name not in ("version", "byteorder"):
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    return target


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(path))
    message = str(caught.value)
    assert "\n" not in message and path.name in message
    return message


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def edited(edit: Callable[[dict], None]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        value = json.loads(content)
        edit(value)
        return json.dumps(value).encode()

    return apply


def test_an_exported_program_is_a_model(archive: Path) -> None:
    model = load_model(str(archive))
    assert model.exported is not None and model.name == "net" and model.extra == {"method": "none"}
    assert model.log_name == f"net-{model.digest[:8]}-b2"
    torch.manual_seed(0)
    expected = DigitsCNN().eval()(model.example_inputs[0])
    torch.testing.assert_close(model.module(*model.example_inputs), expected)
    assert load_model(str(archive), batch=2, input_shape=(1, 8, 8)).batch == 2
    with pytest.raises(InputError, match="export it anew"):
        load_model(str(archive), batch=3)
    with pytest.raises(ModelError, match="holds its weights"):
        load_model(str(archive), weights="x.pt")


def test_a_copy_of_its_module_says_nothing(archive: Path) -> None:
    module = load_model(str(archive)).module
    with warnings.catch_warnings():
        # The tests' own settings, which ignore torch's warnings of itself, do not count here.
        warnings.resetwarnings()
        warnings.simplefilter("error")
        copied = duplicate(module)
    weights = dict(module.named_parameters())
    for name, weight in copied.named_parameters():
        assert torch.equal(weight, weights[name]) and weight.data_ptr() != weights[name].data_ptr()


def test_an_archive_without_example_inputs(archive: Path, tmp_path: Path) -> None:
    program = torch.export.export(DigitsCNN().eval(), (torch.randn(1, 1, 8, 8),))
    program.example_inputs = None
    torch.export.save(program, tmp_path / "bare.pt2")
    assert load_model(str(tmp_path / "bare.pt2")).input_shape == (1, 1, 8, 8)


def test_the_copy_itself_is_faithful(archive: Path, tmp_path: Path) -> None:
    assert load_model(str(rewrite(archive, tmp_path / "copy.pt2", {}))).name == "copy"


def test_files_that_are_no_archive(archive: Path, tmp_path: Path) -> None:
    for name, content in {
        "text.pt2": b"hello",
        "empty.pt2": b"",
        "half.pt2": archive.read_bytes()[:20000],
        "weights.pt2": saved(DigitsCNN().state_dict()),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert "is not a whole torch.export archive" in refused(tmp_path / name)
    (tmp_path / "dir.pt2").mkdir()
    assert "cannot be read" in refused(tmp_path / "dir.pt2")


def test_the_fall_back_from_weights_only_is_refused(archive: Path, tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    original = torch.load
    plant = {"data/sample_inputs/model.pt": lambda _: saved(((torch.zeros(2, 1, 8, 8), Canary(canary)), {}))}
    path = rewrite(archive, tmp_path / "evil.pt2", plant)
    with pytest.raises(Exception):  # noqa: B017
        torch.export.load(path)
    assert canary.exists(), "torch's own loader must run the plant, or this test shows nothing"
    canary.rmdir()
    assert "refused" in refused(path)
    assert not canary.exists()
    assert torch.load is original


@pytest.mark.parametrize("record", ["data/weights/model.pt", "data/constants/model.pt"])
def test_pickled_weights_and_constants(archive: Path, tmp_path: Path, record: str) -> None:
    canary = tmp_path / "executed"
    path = rewrite(archive, tmp_path / "evil.pt2", {record: lambda _: saved({"x": Canary(canary)})})
    assert "refused" in refused(path)
    assert not canary.exists()


def test_a_weight_marked_as_pickle(archive: Path, tmp_path: Path) -> None:
    canary = tmp_path / "executed"

    def mark(config: dict) -> None:
        config["config"]["stem.0.weight"]["use_pickle"] = True

    change = {
        "data/weights/model_weights_config.json": edited(mark),
        "data/weights/weight_0": lambda _: saved(Canary(canary)),
    }
    assert "refused" in refused(rewrite(archive, tmp_path / "evil.pt2", change))
    assert not canary.exists()


@pytest.mark.parametrize("name", ["opaque_obj_0", "custom_obj_0", "../sample_inputs/model.pt"])
def test_pickled_objects(archive: Path, tmp_path: Path, name: str) -> None:
    canary = tmp_path / "executed"

    def add(config: dict) -> None:
        config["config"]["c"] = {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}

    change = {"data/constants/model_constants_config.json": edited(add)}
    if not name.startswith(".."):
        change[f"data/constants/{name}"] = lambda _: pickle.dumps(Canary(canary))
    assert "refused" in refused(rewrite(archive, tmp_path / "evil.pt2", change))
    assert not canary.exists()


def test_a_compiled_library(archive: Path, tmp_path: Path) -> None:
    change = {"data/aotinductor/model/model.so": lambda _: b"\x7fELF"}
    assert "compiled library" in refused(rewrite(archive, tmp_path / "evil.pt2", change))


def test_code_in_the_names_of_the_graph(archive: Path, tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    code = f"x = [__import__('os').mkdir('{canary}')]; x"

    def rename(node: object) -> object:
        if isinstance(node, dict):
            return {(code if key == "relu" else key): rename(value) for key, value in node.items()}
        if isinstance(node, list):
            return [rename(value) for value in node]
        return code if node == "relu" else node

    def edit(program: dict) -> None:
        program["graph_module"]["graph"] = rename(program["graph_module"]["graph"])

    path = rewrite(archive, tmp_path / "evil.pt2", {"models/model.json": edited(edit)})
    assert "could be executed as code" in refused(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "edit",
    [
        lambda p: p["graph_module"]["graph"]["nodes"][0].__setitem__("target", "torch.hub.load"),
        lambda p: p["graph_module"]["module_call_graph"][0]["signature"].__setitem__("forward_arg_names", ["x=exit()"]),
        lambda p: p.__setitem__("guards_code", ["__import__('os').abort()"]),
        lambda p: p["graph_module"]["graph"]["nodes"][0]["inputs"][3].__setitem__(
            "arg", {"as_sym_int": {"as_expr": {"expr_str": "exit(7)", "hint": None}}}
        ),
    ],
    ids=["operator", "argument", "guard", "size"],
)
def test_other_places_that_torch_would_execute(archive: Path, tmp_path: Path, edit: Callable[[dict], None]) -> None:
    message = refused(rewrite(archive, tmp_path / "evil.pt2", {"models/model.json": edited(edit)}))
    assert "refused" in message or "dynamic sizes" in message


def test_dynamic_sizes_and_training_mode_are_named(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=2, max=8)
    example = (torch.randn(4, 1, 8, 8),)
    torch.export.save(
        torch.export.export(DigitsCNN().eval(), example, dynamic_shapes=({0: batch},)), tmp_path / "dynamic.pt2"
    )
    assert "dynamic sizes" in refused(tmp_path / "dynamic.pt2")
    torch.export.save(torch.export.export(DigitsCNN().train(), example), tmp_path / "training.pt2")
    assert "module.eval()" in refused(tmp_path / "training.pt2")
