"""The training loop: chunked loss, optimizer, checkpoints, several processes."""
