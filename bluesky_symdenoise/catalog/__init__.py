"""Tiled: the catalogue that is served, derived runs, queries."""
