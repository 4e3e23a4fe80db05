"""A model of somebody else's, as a researcher lays it out, and what tests do with it: pack it, change it, break it."""
