"""`python -m raydkm`: the command line, where the script `raydkm` is not on the path."""

from raydkm.cli import main

if __name__ == "__main__":
    main()
