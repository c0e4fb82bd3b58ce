"""Expert parallelism: where experts live, and how tokens get to them and back."""
