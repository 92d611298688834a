"""Which engines there are and what they can do: a folder for each framework, with all that is its own."""
