"""The command line and the supervisor of the embedded default. Imports all, is imported by none."""
