"""Model packages at a firm: fetched when its people ask, read, approved, installed, and verified whenever they run.

`shelf` keeps them, `fetch` gets them, `reading` shows them to people, `admission` finds a job's.
"""
