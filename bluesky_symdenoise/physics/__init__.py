"""Physics of an X-ray frame: counts, exposure, symmetry, noise. Pure numpy."""
