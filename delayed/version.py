"""The version of the library, written here because to look it up takes a fourth of the time of a worker's imports."""

__version__ = "1.9.0.dev0"
