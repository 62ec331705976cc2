"""Lessons: a notebook for each rung, and the modules that the notebooks share."""
