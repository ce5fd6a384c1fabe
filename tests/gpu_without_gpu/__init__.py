"""What tells whether a Triton kernel is right on a machine without a GPU."""
