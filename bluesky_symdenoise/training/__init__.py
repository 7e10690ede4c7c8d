"""How weights come to be: simulated and real frames, independent pairs, a likelihood."""
