"""Where instances go, a pure plan, and how processes start: here, through MPI, in containers, in enclaves."""
