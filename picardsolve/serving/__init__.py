"""One model for many solves: their calls are merged into shared rounds."""
