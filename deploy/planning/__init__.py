"""An analytic model of a run on a cluster: memory, rates, publication, split. Pure, without torch.

Read ``law`` first, which says how long a step takes and why; ``forecast`` puts the parts together,
``split`` looks for the best one. Every figure that nobody measured is an assumption with a name and
a source in ``cluster``; those in ``measured`` come from the project's own benchmarks.
"""
