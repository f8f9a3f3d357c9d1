"""The teacher's side: student notebooks from masters, and grades from what comes back.

Nothing here holds a solution or a hidden test. Those stand in the masters, ``classroom/source`` of the repository.
"""
