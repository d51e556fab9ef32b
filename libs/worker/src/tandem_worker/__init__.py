"""Tandem's worker host: registration, roles, handoff, transports."""
