"""Tables for people and files for programs, from run.json alone."""
