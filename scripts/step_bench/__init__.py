"""What a step costs: optimizers on the same gradients, interleaved, beside the machine's limits."""
