"""Tandem's frontend: OpenAI over HTTP, typed API over gRPC."""
