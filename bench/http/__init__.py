"""The benchmark over HTTP: the crowd, a shop's visitors, and comparisons with plain endpoints."""
