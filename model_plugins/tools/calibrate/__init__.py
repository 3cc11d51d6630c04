"""`prismoe calibrate`: record a checkpoint's routers, fit a policy to them, report what that changes."""
