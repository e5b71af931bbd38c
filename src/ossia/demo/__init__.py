"""The bundled model, and the curriculum it is taught."""
