"""StableSR itself: networks, sampling, aggregation, colour correction and the image path.

Paper: "Exploiting Diffusion Prior for Real-World Image Super-Resolution", arXiv 2305.07015.
Nothing in this package knows about HTTP, Redis or jobs.
"""
