"""The experts back ends: interchangeable ways to compute one routing."""
