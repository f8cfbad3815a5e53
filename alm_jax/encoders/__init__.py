"""Towers: log-mel features or token ids to one vector, one family a file."""
