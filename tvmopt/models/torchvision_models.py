"""The classification networks of torchvision, seeded or with published weights."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import logging
import socket
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tvmopt.errors import ModelError, one_line
from tvmopt.models.weights import is_file_name, load_state_dict

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger(__name__)

# Side of the square image a network was designed for, where that is not 224.
_SIDES = {"inception_v3": 299}
_SIDE = 224
_DOWNLOAD_TIMEOUT = 20.0


def names() -> list[str]:
    """All classification networks torchvision has."""
    from tvmopt.torchvision_compat import torchvision

    models = torchvision().models
    return list(models.list_models(module=models))


def default_side(name: str) -> int:
    """Height and width of the images `name` was designed for."""
    return _SIDES.get(name, _SIDE)


def load(name: str, weights: str | None, shape: tuple[int, int, int] | None, seed: int) -> tuple[nn.Module, int]:
    """Returns the network in eval mode and the side of its default input.

    weights: None (drawn by `seed`), a name of torchvision's ("DEFAULT"), or a file with a state dict.
    shape: (C, H, W) of the images, which a few networks (ViT, MaxViT) are built for; None: the default.
    Auxiliary classifiers are left out: the output is one tensor. Errors: `ModelError`.
    """
    import torch

    from tvmopt.torchvision_compat import torchvision

    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see torchvision.models.list_models()"
        if name in torchvision().models.list_models():
            hint = "it is not a classification network; give it as FILE.py:FACTORY"
        raise ModelError(f"unknown torchvision model {name!r}: {hint}")
    models: Any = torchvision().models
    published = None
    if weights is not None and not is_file_name(weights):
        published = _published(models, name, weights)
    side = published.transforms().crop_size[0] if published is not None else default_side(name)
    options = _options(models.get_model_builder(name), shape or (3, side, side), published is not None)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), _timeout(_DOWNLOAD_TIMEOUT):
        torch.manual_seed(seed)
        # googlenet and inception_v3 warn about how they will draw weights in the future.
        warnings.simplefilter("ignore", FutureWarning)
        if published is not None:
            _log.info("%s: weights from %s, downloaded once", name, published.url)
            options["progress"] = False
        try:
            # torch.hub writes "Downloading" to standard error by itself, where a failure is to be one line.
            with contextlib.redirect_stderr(io.StringIO()):
                module = models.get_model(name, weights=published, **options)
        except OSError as error:
            reason = one_line(getattr(error, "reason", None) or error, 120)
            url = getattr(published, "url", "them")
            raise ModelError(
                f"the weights {weights} of {name} cannot be downloaded ({reason}): fetch {url} "
                "where there is a network and give it as --weights FILE"
            ) from error
        except Exception as error:
            raise ModelError(f"torchvision cannot build {name}: {one_line(error, 200)}") from error
    # With published weights torchvision builds the auxiliary classifiers; eval mode never runs them.
    for attribute in ("AuxLogits", "aux1", "aux2"):
        if getattr(module, attribute, None) is not None:
            setattr(module, attribute, None)
            module.aux_logits = False
    module.eval()
    if weights is not None and published is None:
        load_state_dict(module, weights)
    return module, side


def _published(models: Any, name: str, weights: str) -> Any:
    available = models.get_model_weights(name)
    try:
        return available[weights] if weights != "DEFAULT" else available.DEFAULT
    except (KeyError, AttributeError):
        listed = ", ".join(["DEFAULT", *(entry.name for entry in available)])
        raise ModelError(f"{name} has no weights {weights!r}: choose one of {listed}, or a FILE.pt") from None


def _options(builder: Any, shape: tuple[int, int, int], published: bool) -> dict[str, Any]:
    """Constructor arguments that `builder` needs for images of `shape`, and to leave out auxiliary classifiers."""
    name = builder.__name__
    accepted = inspect.signature(builder).parameters
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3") and not published:
        options = {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_") and not published and shape[1] == shape[2]:
        options = {"image_size": shape[1]}
    elif name.startswith("maxvit"):
        options = {"input_size": shape[1:]}
    return {key: value for key, value in options.items() if key in accepted or "kwargs" in accepted}


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """A download that gets no answer ends; torch.hub sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
