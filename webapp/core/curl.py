"""How the pages' ready-to-copy calls say who asks: by the variable that the README sets."""

KEY = '-H "X-API-Key: $TINKER_API_KEY"'
JSON = '-H "Content-Type: application/json"'
