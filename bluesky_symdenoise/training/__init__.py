"""Training of weights: simulated and real frames, independent pairs, a likelihood."""
