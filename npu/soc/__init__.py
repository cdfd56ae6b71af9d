"""What each SoC is and how fast: the model of time and energy. All its figures are modelled."""
