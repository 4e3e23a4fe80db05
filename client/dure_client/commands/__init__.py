"""The commands of `dure-agent`, one module each."""
