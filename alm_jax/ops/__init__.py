"""Free functions of arrays that models are built from: front-ends, augmentation, attention, interpolation."""
