"""Other tools' interfaces on lrpkernels: import the one you come from, for example ``lrpkernels.compat.captum``."""
