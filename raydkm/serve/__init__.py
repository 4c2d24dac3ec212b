"""The same model online: an HTTP service on Ray Serve, its page and its client."""
