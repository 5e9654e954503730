"""Runs as jobs of a Ray cluster: handed over, named, followed, stopped."""
