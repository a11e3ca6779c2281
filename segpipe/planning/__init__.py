"""Measured costs -> how long an archive takes on a cluster that nobody has yet.

costs.py       what a bulk run costs: measured seconds and bytes, and their fit
forecast.py    costs -> hours, rate, bottleneck, memory, deaths of nodes, in closed form
"""
