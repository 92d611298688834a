"""What can be asked for: case names, parameters, precisions, workloads, platforms. Declarations alone."""
