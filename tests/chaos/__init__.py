"""The judge: real workers are killed, frozen and cut off, and what their tasks noted says what became of each.

It stands outside the library and trusts nothing of it. Three logs are kept, each by those who do the thing: the
*ledger* by the tasks, the *enqueue log* by the producers, the *nemesis log* by whoever does the harm. When all is quiet
again :mod:`tests.chaos.checker` reads them, and nothing else, and gives a verdict in a dozen columns.

==================  ==================================================================================================
``records.py``      a log: one line, one system call, one checksum; it survives the death of whoever writes
``tasks.py``        tasks that write the ledger
``history.py``      what the three logs say: runs, intents, deaths, outages
``checker.py``      the verdicts
``arena.py``        a queue, workers on it, and the three logs
``house.py``        what a worker's process runs; ``processes.py``: who is whose child
``broken.py``       brokers with one fault each, which the judge has to find
``chaos.py``        random harm for a while: ``make chaos``; with ``nemesis.py``, ``producer.py`` and ``stores.py``
``scenarios/``      one kind of harm at a time: on the way to the store (``proxy.py``, which reads it with ``wire.py``),
                    by standing still, to the store, to clocks (``shims/``); ``scene.py`` has the register of all
``flat.py``         very many tasks, and nothing may grow: with ``residue.py``, what the guardians take
``crashpoints.py``  death at each point of each operation: ``make crashpoints``; with ``crash_scenes.py``, which lead
                    there, and ``client.py``; ``syscalls.py``: between any two system calls; with ``call_scenes.py`` and
                    ``halt.py``, by which processes wait at their beginning; and ``points.py``: the tables
``peers.py``        the same judge on other libraries, with ``peer_tasks.py`` and ``peer_celery.py``
==================  ==================================================================================================
"""
