"""A module that is large, to be preloaded."""

data = b"x" * (200 << 20)
