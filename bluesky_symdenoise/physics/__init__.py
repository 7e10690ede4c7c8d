"""What an X-ray frame is: counts, exposure, symmetry, noise. Pure numpy."""
