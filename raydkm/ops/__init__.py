"""Pure tensor functions: the mathematics, with no notion of files, workers or configuration."""

from raydkm.ops.fork import survive_forks

survive_forks()
