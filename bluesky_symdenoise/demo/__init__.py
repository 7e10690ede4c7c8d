"""The main job on embedded defaults: acquire, denoise, catalogue, query back, show."""
