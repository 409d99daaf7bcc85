"""Published corpora as they are on disk after unpacking, each read by one module, and their preparation."""
