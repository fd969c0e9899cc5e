"""Clients of the SDK that speak other people's protocols."""
