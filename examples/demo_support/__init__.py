"""What the demo and the end-to-end tests run on: a checkpoint, a Ray cluster, a Serve app.

None of this is needed to use ray_weights.
"""
