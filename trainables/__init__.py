"""How one trial trains. Everything here but `ray_train.py` runs without Ray, MLflow and Optuna."""
