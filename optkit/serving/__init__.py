"""Serving a variant on an existing server, as the cost model chose, and loading it with real traffic."""
