"""Ground floor of headrace: types, wire, configuration and process life. Imports no other part."""
