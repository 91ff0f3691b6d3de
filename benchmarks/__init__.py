"""What is measured: time and memory, beside the straightforward way and the stock detector.

``python -m benchmarks CONFIG`` measures, ``python -m benchmarks.report JSON`` draws.
"""
import groupdetr_mmdet  # noqa: F401, beside mmcv-lite mmdet can be imported only after it
