"""`python -m tvmopt.prune` as a user runs it, and what the bench says of its file."""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench.cases import Case
from bench.worker import Session
from tvmopt.compress import saved
from tvmopt.compress.summary import summary
from tvmopt.errors import ModelError, TvmoptError
from tvmopt.model import load_model
from tvmopt.models.resnet20 import resnet20
from tvmopt.options import BuildOptions, run
from tvmopt.prune import Settings, main, parser, prune_model

ROOT = Path(__file__).resolve().parent.parent


def test_a_pruned_model_from_the_command_line_to_the_bench(tmp_path: Path) -> None:
    path = tmp_path / "pruned.pt2"
    done = subprocess.run(
        [sys.executable, "-m", "tvmopt.prune", "--method", "block", "--sparsity", "0.5", "--finetune-epochs", "2",
         "--distill", "--limit", "300", "-o", str(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for text in ("epoch 2 of 2", "conv3.0", "50.0%", "all parameters", "before", "not yet fine-tuned", "zipped"):
        assert text in done.stdout
    assert done.stderr.startswith(f"{path}: digits_cnn by block-16x1")
    # What every row of the bench has from it.
    facts = Session().handle({
        "do": "reference", "case": Case(str(path), "reference", BuildOptions(threads=1)).to_json(),
        "path": str(tmp_path / "reference.pt"), "dataset": None, "default_dataset": True, "data_dir": None, "limit": 1,
    })  # fmt: skip
    assert (facts["sparsity"], facts["method"]) == (0.5, "block-16x1")
    assert facts["nonzero_params"] < 0.6 * facts["params"] and facts["size_compressed_bytes"] < facts["size_bytes"]


def test_a_scan_alone_and_by_sensitivity(capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model("digits_cnn")
    settings = Settings("filter-l2", only=("conv2.0", "conv3.0"), limit=200, sensitivity=True)
    assert prune_model(model, settings) is None
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["top-1", "conv2.0", "conv3.0"]
    pruned = prune_model(model, Settings("unstructured", 0.8, limit=300, sensitivity=True))
    assert pruned is not None
    zeros = {layer.name: layer.sparsity for layer in pruned.layers}
    total = sum(layer.sparsity * layer.params for layer in pruned.layers) / sum(layer.params for layer in pruned.layers)
    assert total == pytest.approx(0.8, abs=0.005) and zeros["conv3.0"] > zeros["conv1.0"]
    assert load_model("digits_cnn").module.state_dict().keys() == pruned.module.state_dict().keys()


def test_a_pattern_is_pruned_after_its_scan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--method", "2:4", "--sensitivity", "--limit", "100"]
    assert main([*arguments, "-o", str(tmp_path / "x.pt2")]) == 0
    assert "held-back images" in capsys.readouterr().out
    record = saved.read(load_model(str(tmp_path / "x.pt2")).extra)
    assert record is not None and record.sparsity == record.layers["hidden"] == 0.5
    # Without a file to write it is a scan alone.
    assert main(arguments) == 0 and "all parameters" not in capsys.readouterr().out


def test_rounds_and_their_end_are_those_asked_for() -> None:
    schedule = Settings("block", 0.5, schedule="iterative", epochs=4, rounds=2, prune_until=0.25).when()
    assert (schedule.rounds, schedule.settled) == (2, 0.25)
    assert Settings("block", 0.5, schedule="constant", prune_every=7).when().every == 7
    # A default that leaves training to the full sparsity, however many epochs there are.
    assert Settings("block", 0.5, schedule="iterative", epochs=20).when().settled == pytest.approx(2 / 3)


def test_zeros_spread_by_the_size_of_layers(capsys: pytest.CaptureFixture[str]) -> None:
    pruned = prune_model(load_model("digits_cnn"), Settings("block", 0.8, limit=20, allocation="erdos-renyi"))
    assert pruned is not None
    zeros = {layer.name: layer.sparsity for layer in pruned.layers}
    chosen = [layer for layer in pruned.layers if layer.sparsity]
    total = sum(layer.sparsity * layer.params for layer in chosen) / sum(layer.params for layer in chosen)
    assert total == pytest.approx(0.8, abs=0.02)
    assert zeros["conv2.0"] < zeros["conv3.0"] - 0.02
    for more in (["--sensitivity", "--sparsity", "0.5"], []):
        assert run(main, ["--method", "block", "--allocation", "erdos-renyi", "-o", "x.pt2", *more]) == 2
        assert "give one, and no scan" in capsys.readouterr().err


def test_what_is_cut_out_is_said() -> None:
    pruned = prune_model(load_model("digits_cnn"), Settings("structural-l2", 0.5, dataset="digits"))
    assert pruned is not None
    assert "parameters: 38,474 -> 9,898 (74.3% removed)" in summary(pruned.layers, pruned.before, pruned.after, {})
    # The model that was given is left as it was.
    assert pruned.before.params == 38474


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "block", "--sparsity", "1"], "must be at least 0 and less than 1"),
        (["--method", "block", "--sparsity", "-0.5"], "must be at least 0 and less than 1"),
        (["--method", "block"], "needs a --sparsity"),
        (["--method", "2:4", "--sparsity", "0.9"], "always 0.5"),
        (["--method", "blockk", "--sparsity", "0.9"], "did you mean block"),
        (["--method", "block", "--sparsity", "0.9", "--layers", "head"], "10 outputs are not a multiple of 16"),
        (["--method", "2:4", "--layers", "stem.0"], "1 inputs (of a group) are not a multiple of 4"),
        (["--method", "block", "--sparsity", "0.9", "--layers", "hiden"], "did you mean hidden"),
        (["--method", "unit", "--sparsity", "0.9", "--layers", "conv1.0"], "take filter-l2"),
        (["--method", "block", "--sparsity", "0.5", "--schedule", "polynomial"], "give --finetune-epochs"),
        (["--method", "block", "--sensitivity"], "give --sparsity too, or leave -o out"),
        (["--method", "global", "--sparsity", "0.5", "--sensitivity"], "take --method unstructured"),
        (["--method", "global", "--sparsity", "0.5", "--allocation", "erdos-renyi"], "one threshold for all"),
        (["--method", "2:4", "--sparsity", "0.5", "--allocation", "erdos-renyi"], "2:4 is always 0.5"),
        (["--method", "block", "--sparsity", "0.5", "--rounds", "3"], "--rounds is for --schedule iterative"),
        (["--method", "block", "--sparsity", "0.5", "--prune-every", "3"], "for --schedule constant or polynomial"),
        (["--method", "block", "--sparsity", "0.5", "--schedule", "constant", "--prune-until", "0.5"], "not constant"),
        (["--method", "block", "--sparsity", "0.5", "--schedule", "iterative", "--finetune-epochs", "1",
          "--prune-until", "1.5"], "--prune-until 1.5: a share of training"),
        (["--method", "structural", "--sparsity", "0.5", "--schedule", "iterative", "--finetune-epochs", "1"],
         "cuts at once"),
        (["--method", "block", "--sparsity", "0.5", "--distill"], "give --finetune-epochs"),
        (["resnet20", "--method", "block", "--sparsity", "0.5", "--finetune-epochs", "1"], "give --dataset"),
        (["resnet20", "--method", "2:4", "--weights", "digits"], "weights digits"),
        (["--method", "block", "--sparsity", "0.5", "--dataset", "nope"], "unknown data set"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(TvmoptError) as caught:
        main([*arguments, "-o", str(tmp_path / "x.pt2")])
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "x.pt2").exists()


def test_a_checkpoint_that_does_not_fit_and_a_program_are_refused(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match="of another model"):
        main(["digits_cnn", "--method", "2:4", "--weights", str(tmp_path / "other.pt"), "-o", str(tmp_path / "x.pt2")])
    main(["digits_cnn", "--method", "2:4", "--limit", "50", "-o", str(tmp_path / "x.pt2")])
    with pytest.raises(ModelError, match="prune the model it was exported from"):
        main([str(tmp_path / "x.pt2"), "--method", "2:4", "-o", str(tmp_path / "y.pt2")])
    for output, message in (("x.so", "ends in .pt2"), ("no/x.pt2", "no directory")):
        with pytest.raises(TvmoptError, match=message):
            main(["--method", "2:4", "-o", str(tmp_path / output)])
    with pytest.raises(TvmoptError, match="give -o"):
        main(["--method", "2:4"])


def _examples() -> list[list[str]]:
    """The arguments of every example in the help."""
    _, _, examples = str(parser().epilog).partition("examples:\n")
    return [shlex.split(line.partition("tvmopt.prune ")[2]) for line in examples.splitlines()]


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the help's examples name, made up."""
    torch.manual_seed(0)
    torch.save(resnet20().state_dict(), tmp_path / "resnet20.th")
    for split, label, number in itertools.product(("train", "test"), "ab", range(71)):
        path = tmp_path / "images" / split / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number, 255 if label == "a" else 0, 0)).save(path)
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "cifar10-jpeg.tar.xz", "w:xz") as packed:
        packed.add(tmp_path / "images", "images")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [pytest.param(a, marks=pytest.mark.slow) if a[0].startswith("torchvision:") else a for a in _examples()],
    ids=" ".join,
)
def test_the_examples_of_the_help_run(
    arguments: list[str], stand_ins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # What is said last counts: fewer images and epochs. And a network with a tenth of the weights, which are zipped.
    less = ["--limit", "142", "--finetune-epochs", "1" if "--finetune-epochs" in arguments else "0"]
    smaller = [argument.replace("torchvision:resnet18", "torchvision:squeezenet1_1") for argument in arguments]
    assert run(main, [*smaller, *less]) == 0, capsys.readouterr().err
    if "-o" in arguments:
        load_model(str(stand_ins / arguments[arguments.index("-o") + 1]))
    assert capsys.readouterr().out
