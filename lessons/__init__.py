"""The lessons: one notebook a rung, and the small modules that they share."""
