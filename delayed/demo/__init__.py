"""What ``delayed demo`` runs: real work, some of it hopeless, and evidence of how each task ended.

``tasks`` is what a user would write, ``evidence`` is what the tasks and the worker's handlers note down, ``driver``
starts the processes and does the sums. How it is shown is the business of ``delayed.cli.demo``.
"""
