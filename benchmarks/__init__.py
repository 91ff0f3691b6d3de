"""Time and memory, compared with a straightforward implementation and mmdet's detector.

``python -m benchmarks CONFIG`` measures, ``python -m benchmarks.report JSON`` draws.
"""
import groupdetr_mmdet  # noqa: F401, before mmdet, for mmcv-lite
