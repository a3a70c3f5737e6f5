"""Preloaded by a worker: then it is as if pydantic were not installed."""

import sys

sys.modules["pydantic"] = None  # type: ignore[assignment]
