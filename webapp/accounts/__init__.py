"""Users, projects, memberships and API keys: who may see and spend what."""
