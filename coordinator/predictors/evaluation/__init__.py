"""Studies of predictors on measured data: leave-one-out, transfer, baselines."""
