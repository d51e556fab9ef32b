"""Tandem's planner."""
