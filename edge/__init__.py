"""The edge: WebSocket clients on one side, NATS on the other, and nothing that another node could not rebuild."""
