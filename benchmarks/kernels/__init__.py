"""Times the experts and the routers against their baselines, on CPU and on a GPU."""
