"""What is trained: the model interface, the built-in models, data contracts and metrics."""
