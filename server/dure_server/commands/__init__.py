"""The commands of `dure-server`, by subject."""
