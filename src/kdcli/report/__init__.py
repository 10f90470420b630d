"""``report.html``: everything a comparison found, in one file that needs no network and no script."""
