"""`python -m tests.scenarios.soak`: ten minutes of mixed load on three servers; writes benchmarks/results/soak.json."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> int:
    """Soak, print, write; 1 if something was lost, crossed, or grew."""
    from benchmarks.common import revision, write
    from scoring.telemetry.versions import versions
    from tests.scenarios.soak.servers import MODELS
    from tests.scenarios.soak.soak import MIB, soaked

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=4, help="of each server")
    parser.add_argument("--pause", type=float, default=0.01, help="seconds between two requests of a client")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        result, faults = soaked(
            list(MODELS), Path(folder), options.seconds, options.clients, options.pause, 16 * MIB, texts=120
        )
    result |= {
        "faults": faults,
        "clients": options.clients * len(MODELS),
        "versions": versions(),
        "revision": revision(),
    }
    result |= {"machine": f"{os.cpu_count()} cores"}
    print(json.dumps(result, indent=1))
    print(f"written to {write('soak', result)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
