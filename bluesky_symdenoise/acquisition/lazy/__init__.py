"""Derived runs without pixels: the server denoises frames when they are read."""
