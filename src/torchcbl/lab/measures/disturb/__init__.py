"""Disturbing images: corruptions, occluders and clutter, each named, graded and seeded."""
