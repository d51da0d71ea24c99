"""A convolutional classifier of square pictures of digits, as a PyTorch module for `kind = "torch"`."""

from torch import nn


def classifier(side: int = 28, filters: int = 20, kernel: int = 5) -> nn.Module:
    """Return one convolution, ReLU, the largest of each two by two pixels, and one dense layer of ten scores.

    M. Bornstein, "Escaping from saddle points using asynchronous coordinate descent", 2021, 3.2: 20 filters of 5 × 5,
    for pictures of 28 × 28, which makes 29 330 parameters with the ten classes.
    """
    pooled = (side - kernel + 1) // 2
    return nn.Sequential(
        nn.Conv2d(1, filters, kernel),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(filters * pooled * pooled, 10),
    )
