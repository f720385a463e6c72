"""A batch: verified groups pulled by step, screened, planned over ranks and packed into rows.

``group_source`` (with ``screening``, ``payload_source``, ``reference_source``) pulls, ``layout``
plans, ``documents``, ``batch`` and ``chunk`` pack.
"""
