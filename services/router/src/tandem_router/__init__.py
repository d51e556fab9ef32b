"""Tandem's router."""
