"""Run any Python function later, in another process, exactly as it was called."""
