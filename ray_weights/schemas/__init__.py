"""What crosses an actor or comes from a person: frozen pydantic models, unknown fields refused."""
