"""Six training workloads on the CPU: this project, eager and compiled, beside other libraries."""
