"""The reference harness's command line and specs, turned into cases."""
