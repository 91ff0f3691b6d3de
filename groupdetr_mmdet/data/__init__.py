"""Data: COCO annotations and their metric, images, folders in other layouts."""
