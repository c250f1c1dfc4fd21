"""Image archives: the same as the folder they were made of, decoded once; and the public ResNet-20 they are for."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import torch

from tests.test_data import MNIST_DIR, write_folder
from tvmopt import image_archive, image_cache, image_folder
from tvmopt.data import load_dataset
from tvmopt.errors import DataError, ModelError
from tvmopt.model import load_model

WEIGHTS = MNIST_DIR / "cifar10-resnet" / "resnet20-12fca82f.th"
ARCHIVE = MNIST_DIR / "cifar10-jpeg.tar.xz"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = write_folder(tmp_path / "set")
    # An archive names its splits as it likes, below a directory of its own or not.
    with tarfile.open(tmp_path / "set.tar.xz", "w:xz") as packed:
        packed.add(folder, "set")
    return tmp_path / "set.tar.xz"


def test_an_archive_is_its_folder(archive: Path) -> None:
    for split in ("train", "test"):
        one = load_dataset("set.tar.xz", archive.parent, split, input_shape=(3, 24, 24))
        other = load_dataset("set", archive.parent, split, input_shape=(3, 24, 24))
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert one.classes == other.classes == ("blue", "red") and len(one) == 6
    assert len(load_dataset(str(archive), None, "test", 2, (3, 24, 24))) == 2


def test_what_is_large_is_decoded_once(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(image_cache.CACHE_DIR_VARIABLE, str(archive.parent / "cache"))
    monkeypatch.setattr(image_cache, "FEWEST", 4)
    monkeypatch.setattr(image_folder, "FEWEST", 4)
    for name in ("set.tar.xz", "set"):
        first = load_dataset(name, archive.parent, "train", input_shape=(3, 24, 24))
        for module in (image_archive, image_folder):
            monkeypatch.setattr(module, "_decode", None)
        again = load_dataset(name, archive.parent, "train", input_shape=(3, 24, 24))
        assert torch.equal(first.images, again.images) and first.classes == again.classes
        monkeypatch.undo()
        monkeypatch.setenv(image_cache.CACHE_DIR_VARIABLE, str(archive.parent / "cache"))
        monkeypatch.setattr(image_cache, "FEWEST", 4)
        monkeypatch.setattr(image_folder, "FEWEST", 4)
    kept = sorted((archive.parent / "cache").iterdir())
    assert len(kept) == 2
    for path in kept:
        path.write_bytes(b"torn")
    assert torch.equal(load_dataset("set", archive.parent, "train", input_shape=(3, 24, 24)).images, first.images)


def test_a_damaged_archive_is_one_line(archive: Path) -> None:
    (archive.parent / "torn.tar.xz").write_bytes(archive.read_bytes()[:200])
    (archive.parent / "empty.tar").write_bytes(b"")
    with tarfile.open(archive.parent / "bare.tar", "w") as packed:
        packed.add(archive.parent / "set" / "train" / "red", "red")
    for name, message in (("torn.tar.xz", "not a whole tar"), ("empty.tar", "not a whole"), ("bare.tar", "no images")):
        with pytest.raises(DataError, match=message):
            load_dataset(name, archive.parent, "train")


def test_resnet20_is_the_public_one(tmp_path: Path) -> None:
    model = load_model("resnet20")
    assert model.input_shape == (1, 3, 32, 32) and sum(p.numel() for p in model.module.parameters()) == 269722
    state = {f"module.{name}": value for name, value in model.module.state_dict().items() if "num_batches" not in name}
    torch.save({"state_dict": state, "best_prec1": 91.7}, tmp_path / "public.th")
    again = load_model("resnet20", weights=str(tmp_path / "public.th"))
    torch.testing.assert_close(again.module(*model.example_inputs), model.module(*model.example_inputs))
    with pytest.raises(ModelError, match="of another model"):
        load_model("mnist_cnn", weights=str(tmp_path / "public.th"))


@pytest.mark.skipif(not (WEIGHTS.is_file() and ARCHIVE.is_file()), reason="CIFAR-10 or the weights are not here")
def test_the_public_weights_classify_cifar() -> None:
    from tvmopt.training.loop import evaluate

    model = load_model("resnet20", weights=str(WEIGHTS))
    # 91.73% on the lossless images; these are JPEG.
    assert evaluate(model.module, load_dataset(str(ARCHIVE), None, "test", 500, (3, 32, 32))) > 0.75
