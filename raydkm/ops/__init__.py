"""Pure tensor functions: the mathematics, with no notion of files, workers or configuration."""
