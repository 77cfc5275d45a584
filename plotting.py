def draw(name, results_dir, plots_dir):
    pass
