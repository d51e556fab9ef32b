"""Tandem's prefill role."""
