"""The same results, cheaper, whatever the groups: fused kernels, dropout, recomputation."""
