"""Each master of an assignment, graded as the file of a student would be, earns all points of its own tests."""

import pytest
from test_release import MASTERS

from stylemoments.classroom import assignment, grading, sandbox


@pytest.mark.parametrize("name", MASTERS)
def test_a_master_earns_all_points(name, needs_sandbox, tmp_path):
    grading.Grader(assignment.read(MASTERS[name]), needs_sandbox, sandbox.Limits()).check_master(tmp_path)
