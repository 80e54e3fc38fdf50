"""Metrics with paired intervals: one file for each kind of task."""
