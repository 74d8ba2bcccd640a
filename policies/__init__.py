"""What every stack is held to: `rules`, and the pack that has Pulumi run them."""
