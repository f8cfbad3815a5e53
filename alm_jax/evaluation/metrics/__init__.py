"""Figures as pure functions of arrays and texts: no model, no data set, no file."""
