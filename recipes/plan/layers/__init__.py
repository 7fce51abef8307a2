"""A model as a row of layers: found in its graph, equal ones kept once, deep ones cut short."""
