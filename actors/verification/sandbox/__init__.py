"""Running programs that nobody trusts. Whether what they compute is right is not known here.

The host side (``sandbox``, ``launcher``, ``self_test``, ``cgroup``) is part of a verifier. The rest
runs in the launched processes and imports the standard library only.
"""
