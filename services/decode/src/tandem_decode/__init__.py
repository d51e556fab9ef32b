"""Tandem's decode role."""
