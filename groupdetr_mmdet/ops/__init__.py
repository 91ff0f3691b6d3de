"""Faster or smaller implementations with the same results: fused kernels, dropout, recompute."""
