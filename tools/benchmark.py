"""The same as ``python -m benchmarks`` in the clone, from any folder."""
import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks.__main__ import end_mistakes, main

    end_mistakes(main)
