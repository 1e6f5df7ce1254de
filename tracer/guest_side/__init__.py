"""Records a guest's driver from within the guest."""
