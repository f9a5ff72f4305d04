"""One-axis factors of a preconditioner, one module per pattern."""
