"""What a denoiser does near t = 0, measured."""
