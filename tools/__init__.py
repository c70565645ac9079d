"""What the repository itself needs: locks and packaged models. Not installed."""
