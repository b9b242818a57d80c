"""Layer 5: the compiled step. One call of a function is recorded below autograd; its memory is
planned, its elementwise work fused, and every further call replays the plan."""
