"""Tandem's decode role: writes tokens and coordinates the requests that it was given."""

from tandem_decode.role import DecodeRole

__all__ = ["DecodeRole"]
