"""What keeps bad steps out and finds ranks that are gone.

``guards`` (with ``culprits``) decide whether a step is taken, ``alarms`` and ``watch`` warn,
``findings`` say it, ``replica_check`` compares parameters; ``rank_watch``, ``heartbeat`` and
``preemption`` watch the processes.
"""
