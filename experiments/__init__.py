"""Programs that train. They run from a checkout and are not installed."""
