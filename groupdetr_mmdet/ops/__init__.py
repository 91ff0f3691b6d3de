"""The same results, cheaper: fused kernels, dropout, activations that are computed again.

Nothing here knows of groups; each part stands or falls with a measured number.
"""
