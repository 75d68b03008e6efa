"""The studio as a page of its own: a server of one notebook, a kernel for each visitor.

    prepared.py  what every visitor's kernel needs, fitted once and kept on disk
    visits.py    kernels and their pages, at most as many as there are places
    server.py    Voila with what it lacks for a lecture hall: places, a page that asks no other host, no way to run code
    page/        that page: template, style, script

The notebook is `notebooks/app.ipynb`; `workbench app` brings all of it together.
"""
