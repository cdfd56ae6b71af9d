"""The converter: from a checkpoint to a bundle. Runs on the workstation, never on a device."""
