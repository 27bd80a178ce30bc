"""What is said of programs under pm2 when pm2 itself knows nothing of them any more."""

from __future__ import annotations

from pathlib import Path

import pytest
from salvor.errors import CannotError
from salvor.host import services
from salvor.shell import local


def test_a_list_that_pm2_lost_is_told_with_the_way_to_give_it_back(tmp_path: Path) -> None:
    program, home = tmp_path / "bin" / "pm2", tmp_path / "pm2"
    program.parent.mkdir()
    home.mkdir()
    program.write_text("#!/bin/sh\necho '[]'\n")
    program.chmod(0o700)
    environment = {"PM2_HOME": str(home), "PATH": f"{program.parent}:/usr/bin:/bin"}
    seen = services.see(local(), "shop", environment)
    assert (seen.state, seen.silent) == ("unknown", True)
    assert f"no daemon of {home} runs, and its dump.pm2 does not name shop" in seen.line
    with pytest.raises(CannotError, match="does not name shop") as caught:
        services.see_surely(local(), "shop", environment)
    assert "pm2 save" in caught.value.hint and "pm2 save" in seen.line
    assert f"there: export PM2_HOME={home}; pm2 ping" in caught.value.hint
    assert services.last_words("pm2", "shop", environment) == f"export PM2_HOME={home}; pm2 logs shop --nostream"
