"""What is minimised or measured: data, model, loss and noise-free evaluation, a module each."""
