"""Kind ``math``: is the final answer the same mathematical object as the gold answer?

Equality is decided on the trees of :mod:`common.math_answer`: first exactly, in rational
arithmetic; where roots, logarithms and the like occur, numerically, to at least thirty digits below
the smallest term (:mod:`actors.verification.math.evaluation`). Nothing that an answer says is ever
evaluated as code, and nothing is simplified, so there is nothing that can hang.
"""
