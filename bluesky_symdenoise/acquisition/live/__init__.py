"""Denoising while a RunEngine acquires: callbacks, the worker process, and what keeps documents safe."""
