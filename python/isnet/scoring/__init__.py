"""Scores, heatmap statistics, intervals, paired tests and pictures of trained classifiers."""
