"""A module that fails when it is imported."""

scale = 1 / 0
