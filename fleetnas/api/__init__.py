"""The functions behind `import fleetnas`: thin, documented calls into the packages below."""
