"""``python -m groupdetr_mmdet``, the same as ``groupdetr``."""
from groupdetr_cli import main

if __name__ == '__main__':
    main()
