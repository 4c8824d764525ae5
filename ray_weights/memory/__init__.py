"""Memory that weights live in: owned by a transfer actor, mapped by engine processes.

`host` is a memfd, `device` is plain cudaMalloc; `arena` is the interface that both meet, `handles` what
crosses to another process, `limits` says beforehand whether an arena would fit.
"""
