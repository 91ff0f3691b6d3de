"""``python -m groupdetr_mmdet``, the same as ``groupdetr``."""
from groupdetr_mmdet.commands.cli import main

if __name__ == '__main__':
    main()
