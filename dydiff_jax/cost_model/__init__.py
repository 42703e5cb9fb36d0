"""Cost model of a training step: memory, arithmetic and collectives of its compiled program, and predicted time."""
