"""Read checkpoints without running their code; load, convert and resume them."""
