"""Run ``python -m benchmarks`` of the clone from any folder."""
import os
import subprocess
import sys
from pathlib import Path

if __name__ == '__main__':
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')])
    sys.exit(subprocess.call([sys.executable, '-m', 'benchmarks', *sys.argv[1:]],
                             env=dict(os.environ, PYTHONPATH=path)))
