"""Training: state, step, loop, mesh, sharding, optimizer, checkpoints and faults."""
