"""Training and evaluation of any objective: the compiled step, a stage's parts, the loop, checkpoints, logs."""
