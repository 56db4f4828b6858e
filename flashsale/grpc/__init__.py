"""The gRPC door: calls that turn into the same requests that come over TCP. Needs the extra `grpc`."""
