"""The same as ``python -m benchmarks`` in the clone, from any folder."""
import runpy
import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).parents[1]))
    runpy.run_module('benchmarks', run_name='__main__', alter_sys=True)
