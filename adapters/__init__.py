"""Adapters: the public functions on one kind of array each.

An adapter brings arrays into canonical form, calls a backend, and gives its framework what it needs:
gradients, batching, sharding. It holds no algorithm. `zeta_ops.registry` lists the adapters.
"""

if __name__ == "adapters":
    raise ImportError("import this package as zeta_ops.adapters: a second copy would register everything twice")
