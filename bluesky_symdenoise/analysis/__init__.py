"""Quantities of one frame that the usual integration does not give, each with an error that holds."""
