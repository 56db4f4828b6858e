"""The gRPC door: OrderService, health and reflection (extra `grpc`)."""
