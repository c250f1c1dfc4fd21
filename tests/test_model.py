"""Model specs: what loads, what it must look like, and that bad input ends in one clear line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tvmopt.errors import InputError, ModelError, TvmoptError
from tvmopt.model import Model, from_module, load_model
from tvmopt.models.random_weights import MIN_CHANGE, redraw_negligible, relative_change

FAMILIES = [
    "resnet18", "mobilenet_v2", "mobilenet_v3_large", "googlenet", "vgg11", "squeezenet1_0", "efficientnet_b0",
    "densenet121", "shufflenet_v2_x1_0", "mnasnet1_0", "regnet_y_400mf", "convnext_tiny", "vit_b_16", "swin_t",
    "inception_v3", "alexnet",
]  # fmt: skip

FACTORIES = """
import torch
from torch import nn
import beside

def good():
    return nn.Sequential(nn.Conv2d(3, beside.WIDTH, 3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 2)), (
        torch.randn(2, 3, 8, 8),)

def one_tensor():
    return nn.Linear(4, 2), torch.randn(1, 4)

def raises():
    raise RuntimeError("the moon is\\nin the wrong house")

def exits():
    raise SystemExit(3)

def returns_text():
    return "nothing"

def half():
    return nn.Linear(4, 2).half(), (torch.randn(1, 4).half(),)

def misfit():
    return nn.Linear(4, 2), (torch.randn(1, 5),)

def deaf():
    layer = nn.Linear(4, 2)
    nn.init.zeros_(layer.weight)
    return layer, (torch.randn(1, 4),)
"""


@pytest.fixture
def factories(tmp_path: Path) -> str:
    (tmp_path / "beside.py").write_text("WIDTH = 4\n")
    path = tmp_path / "nets.py"
    path.write_text(FACTORIES)
    return str(path)


def rejected(spec: str | None, error: type[TvmoptError] = ModelError, **options: object) -> str:
    """The message with which `spec` is refused; it is one line."""
    with pytest.raises(error) as caught:
        load_model(spec, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message and 20 < len(message) < 450, message
    return message


def output(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return model.module(*model.example_inputs)


def test_importing_costs_nothing() -> None:
    code = "import sys, tvmopt.model, tvmopt.data; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_default_is_digits_cnn() -> None:
    model = load_model()
    assert (model.name, model.spec, model.log_name) == ("digits_cnn", "digits_cnn", "digits_cnn")
    assert model.input_shape == (1, 1, 8, 8) and output(model).shape == (1, 10)
    assert not model.module.training and model.exported is None
    assert load_model("digits_cnn").digest == model.digest and len(model.digest) == 16


def test_batch_shape_and_dtype_are_in_the_log_name() -> None:
    model = load_model("digits_cnn", batch=8, dtype="float16")
    assert model.log_name == "digits_cnn-b8-float16" and model.input_shape == (8, 1, 8, 8)
    assert next(model.module.parameters()).dtype == torch.float32
    assert load_model("digits_cnn", input_shape=(1, 16, 16)).log_name == "digits_cnn-1x16x16"
    assert load_model("digits_cnn", input_shape=(4, 1, 8, 8)).log_name == "digits_cnn-b4"


def test_mnist_cnn_is_seeded_and_fits_both_sizes() -> None:
    assert torch.equal(output(load_model("mnist_cnn")), output(load_model("mnist_cnn")))
    assert not torch.equal(output(load_model("mnist_cnn")), output(load_model("mnist_cnn", seed=1)))
    assert load_model("mnist_cnn", input_shape=(1, 8, 8)).log_name == "mnist_cnn-1x8x8"


def test_loading_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model("mnist_cnn")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("resnet18", "torchvision:resnet18"),
        ("digit_cnn", "digits_cnn"),
        ("torchvision:resnet81", "resnet18"),
        ("torchvision:fcn_resnet50", "not a classification network"),
        ("no such thing", "FILE.py:FACTORY"),
        ("absent.py:net", "no such file"),
        ("absent.pt2", "no such file"),
        ("absent.py", ":FACTORY"),
    ],
)
def test_unknown_models_are_named_with_what_was_meant(spec: str, part: str) -> None:
    assert part in rejected(spec)


def test_impossible_options_are_refused() -> None:
    assert "dtype" in rejected("digits_cnn", dtype="int4")
    assert "at least 1" in rejected("digits_cnn", InputError, batch=0)
    assert "C,H,W" in rejected("digits_cnn", InputError, input_shape=(8, 8))
    assert "contradicts" in rejected("digits_cnn", InputError, input_shape=(2, 1, 8, 8), batch=3)
    assert "does not run" in rejected("digits_cnn", input_shape=(3, 8, 8))


def test_a_factory_gives_a_module_in_eval_mode(factories: str) -> None:
    path_before = list(sys.path)
    model = load_model(f"{factories}:good")
    assert model.name == "good" and model.log_name == f"good-{model.digest[:8]}-b2"
    assert not model.module.training and torch.equal(output(model), output(load_model(f"{factories}:good")))
    assert sys.path == path_before
    assert load_model(f"{factories}:good", batch=5).input_shape == (5, 3, 8, 8)
    assert load_model(f"{factories}:one_tensor", input_shape=(4,)).input_shape == (1, 4)


@pytest.mark.parametrize(
    ("factory", "part"),
    [
        ("raises", "raised RuntimeError: the moon is"),
        ("exits", "raised SystemExit"),
        ("returns_text", "must return (module, example_inputs)"),
        ("half", "float16"),
        ("misfit", "does not run on inputs of (1, 5)"),
        ("god", "did you mean good"),
    ],
)
def test_a_bad_factory_is_one_line(factories: str, factory: str, part: str) -> None:
    assert part in rejected(f"{factories}:{factory}")


def test_a_file_that_raises_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    assert "ModuleNotFoundError" in rejected(f"{tmp_path}/broken.py:net")
    (tmp_path / "syntax.py").write_text("def net(:\n")
    assert "SyntaxError" in rejected(f"{tmp_path}/syntax.py:net")


def test_outputs_that_ignore_the_input_are_warned_of(factories: str, caplog: pytest.LogCaptureFixture) -> None:
    load_model(f"{factories}:deaf")
    assert "proves little" in caplog.text


def test_a_users_module(factories: str) -> None:
    model = from_module(torch.nn.Sequential(torch.nn.Linear(4, 2)), torch.randn(3, 4))
    assert model.log_name == f"sequential-{model.digest[:8]}-b3"
    with pytest.raises(ModelError, match="not function"):
        from_module(lambda x: x, torch.randn(3, 4))  # type: ignore[arg-type]


def test_weights_from_a_file(tmp_path: Path) -> None:
    source = load_model("mnist_cnn", seed=3)
    state = source.module.state_dict()
    for name, content in {
        "plain.pt": state,
        "nested.pth": {"state_dict": state, "epoch": 3},
        "parallel.pt": {f"module.{key}": value for key, value in state.items()},
    }.items():
        torch.save(content, tmp_path / name)
        loaded = load_model("mnist_cnn", weights=str(tmp_path / name))
        assert torch.equal(loaded.module(loaded.example_inputs[0]), source.module(loaded.example_inputs[0]))


class Canary:
    """Unpickled, it creates the file it is given: the sign that code from a file was run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


def test_bad_weights_are_one_line_and_never_executed(tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    torch.save({"conv1.weight": Canary(canary)}, tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert canary.exists(), "the plant itself must work"
    canary.unlink()
    assert "refused" in rejected("mnist_cnn", weights=str(tmp_path / "evil.pt"))
    assert not canary.exists()
    torch.save(load_model("digits_cnn").module.state_dict(), tmp_path / "other.pt")
    assert "of another model" in rejected("mnist_cnn", weights=str(tmp_path / "other.pt"))
    (tmp_path / "half.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:5000])
    assert "half.pt" in rejected("mnist_cnn", weights=str(tmp_path / "half.pt"))
    torch.save([1, 2], tmp_path / "list.pt")
    assert "no state dict" in rejected("mnist_cnn", weights=str(tmp_path / "list.pt"))
    assert "cannot be read" in rejected("mnist_cnn", weights=str(tmp_path / "absent.pt"))


def test_published_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*args: object, **options: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    message = rejected("torchvision:resnet18", weights="DEFAULT")
    assert "cannot be downloaded" in message and "--weights FILE" in message and "Name or service" in message
    assert capsys.readouterr().err == ""
    assert "IMAGENET1K_V1" in rejected("torchvision:resnet18", weights="IMAGENET9K")


def test_what_does_not_show_is_drawn_anew() -> None:
    block = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    torch.nn.init.zeros_(block[2].weight)
    torch.nn.init.zeros_(block[1].weight)
    torch.nn.init.zeros_(block[0].bias)
    kept = block[0].weight.clone()
    assert redraw_negligible(block, 0) == ["0.bias", "1.weight", "1.bias", "2.weight"]
    assert torch.equal(block[0].weight, kept)
    assert all(float(value.detach().abs().max()) > 1e-3 for value in block.parameters())
    assert redraw_negligible(block, 0) == []


def test_torchvision_resnet_has_statistics_from_data() -> None:
    model = load_model("torchvision:resnet18", input_shape=(3, 64, 64))
    assert model.name == "resnet18" and model.log_name == "resnet18-3x64x64"
    variance = dict(model.module.named_buffers())["layer4.1.bn2.running_var"]
    assert not torch.allclose(variance, torch.ones_like(variance))
    assert all(layer.momentum == 0.1 for layer in model.module.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    again = load_model("torchvision:resnet18", input_shape=(3, 64, 64))
    assert torch.equal(output(model), output(again))
    change = relative_change(model.module, model.example_inputs, seed=11)
    assert change is not None and change > MIN_CHANGE


def test_torchvision_refuses_a_wrong_channel_count() -> None:
    assert "1x1x64x64" in rejected("torchvision:resnet18", input_shape=(1, 64, 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_loads_with_outputs_that_depend_on_inputs(name: str) -> None:
    model = load_model(f"torchvision:{name}")
    side = 299 if name == "inception_v3" else 224
    assert model.input_shape == (1, 3, side, side) and output(model).shape == (1, 1000)
    change = relative_change(model.module, model.example_inputs, seed=11)
    assert change is not None and change > MIN_CHANGE
    # Well conditioned: float32 itself stays far below the tolerances that kernels are held to.
    with torch.no_grad():
        exact = model.module.double()(model.example_inputs[0].double())
    model.module.float()
    assert float((output(model) - exact).abs().max() / exact.abs().max()) < 5e-6
