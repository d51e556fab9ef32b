import sys
from pathlib import Path

# Where `worker_harness` is: the test directories are no packages.
sys.path.insert(0, str(Path(__file__).parents[3] / "libs" / "worker" / "tests" / "harness"))
