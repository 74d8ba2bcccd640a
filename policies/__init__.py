"""What every stack is held to: `rules`, and the pack that has the engine run them."""
