"""Quantities of one frame beyond the usual integration, each with a reliable error."""
