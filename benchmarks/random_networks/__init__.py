"""Random networks of every kind of layer against an independent reference: all rules, gradients, hidden layers, static, recompute."""
