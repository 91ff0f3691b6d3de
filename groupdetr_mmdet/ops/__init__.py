"""The same results, cheaper: fused kernels, dropout, recomputed activations.

Nothing here depends on groups; each part stays only as long as a measured number supports it.
"""
