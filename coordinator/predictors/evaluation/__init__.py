"""Studies of predictors on measured data: methods and baselines, with one device family left out."""
