"""One optimiser step: advantages and denominators, gradients summed in any order, the update.

``update`` leads; ``preparation``, ``training_batch``, ``gradient_sums``, ``minibatches`` and
``critic_update`` are its parts, ``optim``, ``narrow_adamw`` and ``schedule`` what it steps with.
"""
