"""Any PyTorch module as a problem. Imports PyTorch where it is used; it comes with ``asyncsim[torch]``."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PrivateAttr, ValidationInfo, model_validator

from asyncsim.problems.data import class_codes, prepared
from asyncsim.problems.network import LabelledData
from asyncsim.spec import refuse


class TorchModule(LabelledData):
    """f(x) = (1/n) Σᵢ ℓ(module(aᵢ), bᵢ), where x holds the parameters of a ``torch.nn.Module``, one after another.

    `module` = "package.module:Object" is called with the table `arguments` and returns the module; a file beside the
    scenario serves. It is fed features aᵢ of shape (samples, *`shape`), (samples, features) where `shape` is left out:
    `shape` = [1, 8, 8] makes pictures of one channel of the digits. `loss` is "cross_entropy", for modules that return
    one score per class, "mse", the mean squared error to the classes' unit vectors, or "reconstruction", the mean
    squared error to the sample itself, for modules that return what has its shape. `dataset`, `target`, `scale` and
    `batch` are those of `Softmax`, and files of the MNIST data are read, too.

    All is computed in float64 on `device`, "auto" being the GPU where PyTorch sees one, else the CPU. So that the same
    bits come out again, the CPU has one thread and cuDNN its deterministic algorithms; not all else that a module may
    do on a GPU has one. Gradients and Hessian-vector products are PyTorch's. The module is evaluated as for
    prediction: no dropout, and normalisation with the statistics that it came with. Runs begin where the module itself
    does when it is made on the CPU, whose generator is seeded with the replica's address and put back; so they begin at
    the same point on every device. One model at a time (``batched = False``).
    """

    batched: ClassVar[bool] = False

    kind: Literal["torch"] = "torch"
    module: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    loss: Literal["cross_entropy", "mse", "reconstruction"] = "cross_entropy"
    shape: tuple[int, ...] | None = Field(default=None, strict=False)
    device: str = "auto"

    _folder: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _check_module(self, info: ValidationInfo) -> TorchModule:
        if ":" not in self.module:
            raise refuse(f"'module' must be given as package.module:Object, got '{self.module}'")
        self._folder = os.path.realpath(str((info.context or {}).get("folder", ".")))
        if importlib.util.find_spec("torch") is None:
            raise refuse("kind = 'torch' needs PyTorch: pip install 'asyncsim[torch]'")
        self._check_device()
        shape = self.shape or (self.feature_count,)
        if any(length < 1 for length in shape) or np.prod(shape) != self.feature_count:
            raise refuse(
                f"'shape' {list(shape)} has {np.prod(shape)} entries, a sample has {self.feature_count} features"
            )
        self._check_scores()
        return self

    def _check_device(self) -> None:
        import torch

        try:
            torch.zeros(1, dtype=torch.float64, device=self._device).item()
        except (RuntimeError, AssertionError, TypeError) as error:  # the last where there are no such numbers
            raise refuse(f"'device' '{self.device}' cannot be used: {str(error).splitlines()[0]}") from error

    def _check_scores(self) -> None:
        """Try the module on one sample of zeros."""
        import torch

        found = self._module()
        if not isinstance(found, torch.nn.Module):
            raise refuse(f"'{self.module}' is to return a torch.nn.Module, got {type(found).__name__}")
        if not any(True for _ in found.parameters()):
            raise refuse(f"'{self.module}' has no parameters")
        sample = torch.zeros((1, *(self.shape or (self.feature_count,))), dtype=torch.float64, device=self._device)
        try:
            with torch.no_grad():
                scores = tuple(found(sample).shape)
        except Exception as error:  # a user's code fails as it likes
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise refuse(f"'{self.module}' fails on a sample of shape {tuple(sample.shape)}: {reason}") from error
        if self.loss == "reconstruction" and scores != tuple(sample.shape):
            raise refuse(f"'{self.module}' must return what it is given, of shape {tuple(sample.shape)}, got {scores}")
        if self.loss != "reconstruction" and scores != (1, self.class_count):
            raise refuse(
                f"'{self.module}' must return one score per class, shape (1, {self.class_count}), got {scores}"
            )

    @property
    def _device(self) -> str:
        import torch

        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def _module(self) -> Any:
        """Return the module, in float64 on the device, for prediction."""
        return _built(self._folder, self.module, json.dumps(self.arguments), self._device)

    @property
    def dimension(self) -> int:
        """Number of parameters d."""
        return sum(parameter.numel() for parameter in self._module().parameters())

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        """Return the module's own starting point for each replica, shape (…, d)."""
        import torch

        from asyncsim import streams

        flat = np.empty((np.size(replica), self.dimension))
        for place, one in enumerate(np.ravel(replica)):
            with torch.random.fork_rng(devices=[]):
                word = streams.integers(seed, int(one), -1, 0, streams.START, 1, 2**52)[0]
                torch.default_generator.manual_seed(int(word))  # and not those of all GPUs too
                found = _make(self._folder, self.module, json.dumps(self.arguments))
            flat[place] = np.concatenate([p.detach().double().cpu().numpy().ravel() for p in found.parameters()])
        return flat.reshape(*np.shape(replica), -1)

    def value(self, x: np.ndarray) -> np.ndarray:
        """Return f(x)."""
        import torch

        with torch.no_grad():
            return np.asarray(sum(float(self._loss(self._tensor(x), *piece)) for piece in self._pieces()))

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Return ∇f(x), shape (d,)."""
        return self.value_and_gradient(x)[1]

    def value_and_gradient(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return f(x) and ∇f(x) from one pass over the data."""
        return self.block_value_and_gradient(x, slice(None))

    def block_gradient(self, x: np.ndarray, block: slice) -> np.ndarray:
        """Return the coordinates `block` of ∇f(x)."""
        return self.block_value_and_gradient(x, block)[1]

    def block_value_and_gradient(self, x: np.ndarray, block: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return f(x) and the coordinates `block` of ∇f(x) from one pass over the data, back to the block's layers."""
        point = self._tensor(x).requires_grad_()
        value = 0.0
        for features, classes, count in self._pieces():
            loss = self._loss(point, features, classes, count, block)
            if loss.requires_grad:  # not where the block has only parameters that the module does not use
                loss.backward()
            value += float(loss.detach())
        gradient = np.zeros(self.dimension) if point.grad is None else point.grad.cpu().numpy()
        return np.asarray(value), gradient[block]

    def gradient_over(self, x: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Return the gradient of the mean loss over samples, shape (k,)."""
        features, classes = self._tensors()
        point = self._tensor(x).requires_grad_()
        for low in range(0, len(samples), self._at_once):
            some = self._indices(samples[low : low + self._at_once])
            self._loss(point, features[some], classes[some], len(samples)).backward()
        return np.asarray(point.grad.cpu().numpy())

    def hessian_vector(self, x: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return ∇²f(x) v, shape (d,), by differentiating the gradient along v."""
        import torch

        direction, product = self._tensor(vector), np.zeros(self.dimension)
        for piece in self._pieces():
            point = self._tensor(x).requires_grad_()
            (gradient,) = torch.autograd.grad(self._loss(point, *piece), point, create_graph=True)
            if gradient.requires_grad:
                (part,) = torch.autograd.grad(gradient @ direction, point, allow_unused=True)
                product += 0.0 if part is None else part.cpu().numpy()
        return product

    def accuracy(self, x: np.ndarray) -> np.ndarray:
        """Return the share of the samples whose class has the largest score; raise where none is classified."""
        import torch

        if self.loss == "reconstruction":
            raise NotImplementedError
        right = 0
        with torch.no_grad():
            for features, classes, _ in self._pieces():
                right += int((self._scores(self._tensor(x), features).argmax(dim=-1) == classes).sum())
        return np.asarray(right / len(self.classes))

    def _tensor(self, x: np.ndarray) -> Any:
        """Return x as a tensor of its own on the device."""
        import torch

        return torch.tensor(np.asarray(x), dtype=torch.float64, device=self._device)

    def _indices(self, chosen: np.ndarray) -> Any:
        import torch

        return torch.as_tensor(chosen, device=self._device)

    def _tensors(self) -> tuple[Any, Any]:
        """Return features and classes on the device."""
        return _on_device(self.dataset, self.target, self.scale, self.shape, self._device)

    def _pieces(self) -> Any:
        """Yield features, classes and the number of all samples, some samples at a time."""
        features, classes = self._tensors()
        for low in range(0, len(classes), self._at_once):
            yield features[low : low + self._at_once], classes[low : low + self._at_once], len(classes)

    @property
    def _at_once(self) -> int:
        """How many samples go through the module together: on a CPU so few that its cache has what layers return."""
        return 100 if self._device == "cpu" else 1000

    def _scores(self, point: Any, features: Any, block: slice = slice(None)) -> Any:
        """Return the scores; parameters without a coordinate in the block are constants to PyTorch."""
        import torch

        low, high, _ = block.indices(len(point))
        found, parameters, start = self._module(), {}, 0
        for name, parameter in found.named_parameters():
            end = start + parameter.numel()
            part = point[start:end].view(parameter.shape)
            parameters[name] = part if start < high and low < end else part.detach()
            start = end
        return torch.func.functional_call(found, parameters, (features,))

    def _loss(self, point: Any, features: Any, classes: Any, count: int, block: slice = slice(None)) -> Any:
        """Return the losses' sum over `count`."""
        from torch.nn import functional

        scores = self._scores(point, features, block)
        if self.loss == "cross_entropy":
            return functional.cross_entropy(scores, classes, reduction="sum") / count
        if self.loss == "reconstruction":
            return functional.mse_loss(scores, features, reduction="sum") / (count * self.feature_count)
        wanted = functional.one_hot(classes, self.class_count).to(scores.dtype)
        return functional.mse_loss(scores, wanted, reduction="sum") / (count * self.class_count)


# What is made here is kept apart from the problem, which goes to other processes as it stands.


def _make(folder: str, path: str, arguments: str) -> Any:
    """Import ``package.module:Object``, beside the scenario or installed, and call it."""
    name, _, attribute = path.partition(":")
    sys.path.insert(0, folder)
    try:
        return getattr(importlib.import_module(name), attribute)(**json.loads(arguments))
    except Exception as error:  # a user's code fails as it likes
        raise refuse(f"cannot load '{path}': {str(error) or type(error).__name__}") from error
    finally:
        sys.path.remove(folder)


@lru_cache(maxsize=8)
def _built(folder: str, path: str, arguments: str, device: str) -> Any:
    """Return the module in float64 on the device, for prediction, made without a trace in PyTorch's generator."""
    import torch

    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    with torch.random.fork_rng(devices=[]):
        made = _make(folder, path, arguments)
    return made.double().to(device).eval() if isinstance(made, torch.nn.Module) else made


@lru_cache(maxsize=2)
def _on_device(
    dataset: str, target: str | int | None, scale: bool, shape: tuple[int, ...] | None, device: str
) -> tuple[Any, Any]:
    """Return features and classes as tensors on the device."""
    import torch

    features, targets = prepared(dataset, target, scale)
    if shape is not None:
        features = features.reshape(-1, *shape)
    classes = torch.tensor(class_codes(dataset, targets), dtype=torch.int64, device=device)
    return torch.tensor(features, dtype=torch.float64, device=device), classes
