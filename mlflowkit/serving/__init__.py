"""The online half: gateway, protocol, variants."""
