"""One case, from its name to run.json: made ready, run here or in a container, judged."""
