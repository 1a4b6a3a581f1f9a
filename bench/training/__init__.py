"""Training: recipes, seed streams, the loop, checkpoints."""
