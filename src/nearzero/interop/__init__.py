"""Models of diffusers, seen through nearzero's axes; the only place besides networks/unet.py that imports diffusers."""
