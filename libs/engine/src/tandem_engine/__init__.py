"""Tandem's engines."""
