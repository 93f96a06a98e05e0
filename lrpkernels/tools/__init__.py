"""What the command ``lrpkernels`` runs: doctor, bench, profile."""
