"""Where bytes are kept: content hashes, durable writes, the dataset store."""
