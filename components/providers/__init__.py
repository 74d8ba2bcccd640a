"""What the dynamic providers do on the server."""
