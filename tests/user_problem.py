"""A problem as a user would write it: it derives from nothing of asyncsim."""

import numpy as np


class Bowl:
    """f(x) = ½ · depth · ‖x‖² in two coordinates."""

    batched = True
    dimension = 2

    def __init__(self, depth: float = 1.0):
        self.depth = depth

    def value(self, x):
        return 0.5 * self.depth * np.square(x).sum(axis=-1)

    def gradient(self, x):
        return self.depth * x
