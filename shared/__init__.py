"""The vocabulary and the machinery that every service shares; imports no service."""
