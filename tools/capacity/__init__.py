"""What a number of images a day needs: a simulation with the real rules, and the queue measured.

    python -m tools.capacity --images-per-day 1000000      GPUs, waiting, cost, what breaks first
    python -m tools.capacity --measure                     the service beside 20,000 waiting jobs

`devices` has the measured times that the simulation begins with, and where each is from.
"""
