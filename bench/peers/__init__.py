"""What the server is compared with, each a process of its own that speaks the same frames."""
