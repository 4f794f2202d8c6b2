"""From a fit to numbers: what is read at each position, how it is weighted, refined and drawn.

A ``Question`` says what is asked. A ``Reader`` runs the passes of the model that it takes on one
batch, with those that ``measuring`` asks for. Its ``Evidence`` evaluates our networks on what
these passes gave, and a ``Readout`` turns a head's numbers into evidence for classes.
``weighting`` shares that out among positions, by the posterior or by what was measured, and
``heatmap`` joins layers and draws the result at the input's resolution.
"""
