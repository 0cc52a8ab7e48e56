"""The dialects of inference: OpenAI's, and Fireworks' completions, over sampling calls."""
