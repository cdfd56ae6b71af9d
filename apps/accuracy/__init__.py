"""What quantization costs: KL divergence against float, by format, method, target and peer."""
