"""A convolutional autoencoder for square pictures, as a PyTorch module for `kind = "torch"`."""

from torch import nn


def autoencoder(side: int = 28, channels: tuple[int, int, int] = (16, 32, 64)) -> nn.Module:
    """Return three convolutions down to one pixel, and three transposed ones back up, with ReLU between them.

    Footnote 7 of D. Avdiukhin and G. Yaroslavtsev, "Escaping saddle points with compressed SGD", NeurIPS 2021: kernels
    3, 3 and 7, strides 2, 2 and 1, padding 1, 1 and 0, for pictures of 28 × 28; the decoder is symmetrical. The last
    kernel is a quarter of `side`, so that it sees all that is left of pictures of other sizes, too.
    """
    first, second, third = channels
    return nn.Sequential(
        nn.Conv2d(1, first, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(second, third, side // 4),
        nn.ReLU(),
        nn.ConvTranspose2d(third, second, side // 4),
        nn.ReLU(),
        nn.ConvTranspose2d(second, first, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(first, 1, 3, stride=2, padding=1, output_padding=1),
    )
