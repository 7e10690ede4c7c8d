"""Arrays that are denoised when they are read."""
