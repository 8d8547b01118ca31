"""`make run`: checks the machine, starts Ray and Serve, shows progress, leaves no process."""
