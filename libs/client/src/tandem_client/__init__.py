"""Client of Tandem's gRPC API, sync and async."""
