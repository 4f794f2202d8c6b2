"""From a fit to numbers: what is read at each position, how it is weighted, refined and drawn."""
