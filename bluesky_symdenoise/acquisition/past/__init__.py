"""Work on runs that have ended: replay, recompute, test a symmetry, tune a model."""
