"""Orders on their way through a topic of Kafka."""
