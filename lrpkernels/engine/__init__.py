"""Recording a model's forward pass and walking it backwards. :mod:`lrpkernels.tape` is its interface."""
