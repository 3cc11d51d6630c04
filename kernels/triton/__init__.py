"""The kernels in Triton, for GPUs: fused routers, counters, ragged experts, and their checks."""
