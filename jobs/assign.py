"""Assign rows with a model on a Ray cluster.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python jobs/assign.py /models/m1 /data/embeddings --out /data/assignments --keep id

Every other option of `raydkm assign` may follow; `raydkm assign --help` lists them.
"""

import sys

from raydkm.cli import main

if __name__ == "__main__":
    main(["assign", *sys.argv[1:]])
