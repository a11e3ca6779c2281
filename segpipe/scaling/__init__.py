"""A job on more and more cores or GPUs, beside what they could do at most.

pinned.py       a command on some cores, and what it used
ceilings.py     each part of segmenting alone, on pinned cores
bare_ddp.py     the step of a training under bare torchrun
measurement.py  one measurement: a job or one of its parts -> a line
findings.py     the lines -> points, efficiencies, a table
figure.py       the points -> a plot
"""
