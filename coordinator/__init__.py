"""The coordinator: broker, fleet, predictors, search, campaign, store, view, report, command line."""
