"""PyTorch modules for the tests of `kind = "torch"`, as a user would write them."""

import pytest

torch = pytest.importorskip("torch")


class Tanh(torch.nn.Sequential):
    """The network of `TanhNetwork`."""

    def __init__(self, hidden: int = 4):
        super().__init__(torch.nn.Linear(64, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 10))


class Convolution(torch.nn.Sequential):
    """The network of `ConvNetwork`, with dropout that prediction leaves out."""

    def __init__(self, filters: int = 2):
        super().__init__(
            torch.nn.Conv2d(1, filters, 3),
            torch.nn.MaxPool2d(2),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.5),
            torch.nn.Flatten(),
            torch.nn.Linear(9 * filters, 10),
        )


class Bottleneck(torch.nn.Sequential):
    """The network of `Autoencoder`."""

    def __init__(self, hidden: int = 3):
        super().__init__(torch.nn.Linear(64, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 64))


def not_a_module():
    """Return no module."""
    return 3


def no_parameters():
    """Return a module that has nothing to learn."""
    return torch.nn.Flatten()
