"""Requests of callers: settings, a beamline's names for its metadata, and the place of results."""
