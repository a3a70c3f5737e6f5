"""Measurements, each as a ratio to a limit of the machine that was measured in the same minute."""
