"""The command line, where data, models and training are wired together."""
