"""The version of the library, written here because to look it up in what is installed takes longer than all imports."""

__version__ = "1.9.0.dev0"
