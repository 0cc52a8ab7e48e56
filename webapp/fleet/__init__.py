"""What this installation offers: base models and the workers that hold them."""
