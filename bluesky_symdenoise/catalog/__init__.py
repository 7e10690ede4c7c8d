"""Tiled side of the package: the catalogue that is served, derived runs, queries."""
