"""One HTML file about runs: sections of tables and charts made from `run.json` and the raw files beside it."""
