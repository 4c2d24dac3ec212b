"""Assign rows with a model on a Ray cluster.

    ray job submit --address http://HEAD:8265 --submission-id a1 --working-dir . -- \
        python3 jobs/assign.py /models/m1 /data/embeddings --out /data/assignments --keep id

Ray takes a --submission-id once, so that no job runs twice. Run under another one with the same arguments, it does what
is missing. Every other option of `raydkm assign` may follow; `raydkm assign --help` lists them.
"""

import sys

from raydkm.cli import main

if __name__ == "__main__":
    main(["assign", *sys.argv[1:]])
