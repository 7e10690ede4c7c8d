"""Derived documents on their way to Tiled: nothing is lost, and nothing is written twice."""
