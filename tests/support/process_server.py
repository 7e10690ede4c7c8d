"""A Tiled server as a process of its own: FOLDER PORT STREAMING_CACHE_URI; the key is in the environment."""

from __future__ import annotations

import os
import sys

import uvicorn
from tiled.server.app import build_app_from_config

from bluesky_symdenoise.catalog.server.serve import KEY_VARIABLE, embedded_config

if __name__ == "__main__":
    folder, port, cache = sys.argv[1:]
    config = embedded_config(folder, api_key=os.environ[KEY_VARIABLE])
    config.streaming_cache.uri = cache
    uvicorn.run(build_app_from_config(config), host="127.0.0.1", port=int(port), log_level="warning")
