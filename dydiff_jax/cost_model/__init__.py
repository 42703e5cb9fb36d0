"""How a step would run on devices that are not here: what a compiled program does, and how long that takes."""
