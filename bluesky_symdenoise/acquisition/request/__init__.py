"""What a caller asks for: settings, a beamline's names for its metadata, and the place of results."""
