"""A hub id or a folder to a checked model."""
