"""What `report.py` does: find and read runs, group them, and write tables, pictures and a page.

Nothing here imports torch: a report needs the files of runs alone.
"""
