"""The protocols of two papers, end to end: how consistent a set of pictures is, and how well a subject was learned.

:mod:`.style_aligned` is that of StyleAligned, whose authors published no code for it; :mod:`.dreambooth` that of
DreamBooth; :mod:`.records` keeps what was measured, so that a run can be stopped and shared. The command is
``stylemoments evaluate``.
"""
