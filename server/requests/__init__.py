"""The checks of requests: an allow-list of roles, parts and media for every route that takes a body.

`bodies` has the model of each route's body. `guard` passes on only what these models read.
May import metrics, which knows the routing in force.
"""
