"""Fit a model on a Ray cluster.

    ray job submit --address http://HEAD:8265 --submission-id m1 --working-dir . -- \
        python3 jobs/fit.py /data/embeddings --column embedding --clusters 1000 --run-dir /runs/m1 --out /models/m1

Ray takes a --submission-id once, so that no job runs twice. Run under another one with the same --run-dir, parameters
and files, it goes on after the last checkpoint, or does nothing if it has finished. Every other option of `raydkm fit`
may follow; `raydkm fit --help` lists them.
"""

import sys

from raydkm.cli import main

if __name__ == "__main__":
    main(["fit", *sys.argv[1:]])
