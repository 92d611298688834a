"""Find the fastest settings of a case: which to try, which to drop, and the runs themselves."""
