"""Speed and memory of the denoiser, by itself."""
