"""What this machine is and does: sockets, nodes, cgroups, CPU, GPU, contention, the measured ceiling, SGX."""
