"""What a request may hold: an allow-list of roles, parts and media for every route that takes a body.

`bodies` names the model of each route; `guard` passes on only what they read. May import metrics,
which knows the routing in force.
"""
