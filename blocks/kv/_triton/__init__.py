"""Device code of blocks.kv; imported at first launch."""
