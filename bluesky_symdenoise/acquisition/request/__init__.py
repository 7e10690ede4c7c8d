"""What is asked for: settings, where a beamline keeps its numbers, and where results go."""
