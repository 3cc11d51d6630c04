"""`prismoe calibrate`: records a checkpoint's routers, fits a policy to them, and reports the effect."""
