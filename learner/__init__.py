"""The learner, to be read in this order; each file teaches one idea.

1. ``train``: the loop as a table of contents. ``run_setup``, ``run_state``: what a run holds.
2. ``batches``: from verified groups to packed rows.
3. ``step``: one optimiser step; ``objectives``: its mathematics.
4. ``models``: policy, critic, adapters, reference, and how they are computed.
5. ``checkpoints``: what survives a kill. ``main``: how it starts and stops.
6. ``health``: what keeps bad steps out and finds ranks that are gone.
7. ``metrics``: what a step says. ``recorder``: looking into a step again.
8. ``publication``: weights on their way to actors.
9. Beside the loop: ``sft`` and ``sft_corpus``, ``cli``, ``broker_client``; ``studies`` behind
   ``headrace bench``.
"""
