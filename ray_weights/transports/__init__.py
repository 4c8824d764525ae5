"""Ways to read a peer's memory.

`transport` is the interface; `nixl` reads over the network or within a host, `memory` within one process
(the reference, for tests and simulations).
"""
