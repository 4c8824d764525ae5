from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from ray_weights.errors import ArenaTooLarge
from ray_weights.memory.limits import GroupTexts, Headroom, check_fits, headroom_from, memory_headroom

GB = 1 << 30
MEMINFO = f"""MemTotal:       {16 * GB // 1024} kB
MemFree:                5 kB
MemAvailable:   {10 * GB // 1024} kB
HugePages_Total:        0
"""
MACHINE = Headroom(10 * GB, 16 * GB, "/proc/meminfo")


def group(limit: str, usage: int = 0, stat: str = "anon 1\ninactive_file 0\n", source: str = "group") -> GroupTexts:
    return GroupTexts(source, limit, f"{usage}\n", stat)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([], MACHINE),
        ([group("max\n")], MACHINE),
        ([group(f"{(1 << 63) - 4096}\n")], MACHINE),
        ([group(f"{12 * GB}\n", 3 * GB)], Headroom(9 * GB, 12 * GB, "group")),
        ([group(f"{15 * GB}\n", 3 * GB)], MACHINE),
        ([group(f"{4 * GB}", 3 * GB, f"inactive_file {2 * GB}\n")], Headroom(3 * GB, 4 * GB, "group")),
        (
            [group(f"{4 * GB}", 3 * GB, f"inactive_file 0\ntotal_inactive_file {GB}\n")],
            Headroom(2 * GB, 4 * GB, "group"),
        ),
        ([group(f"{4 * GB}", 5 * GB)], Headroom(0, 4 * GB, "group")),
        ([group(f"{8 * GB}"), group(f"{6 * GB}", source="outer")], Headroom(6 * GB, 6 * GB, "outer")),
    ],
)
def test_the_tightest_limit_decides_and_droppable_cache_does_not_count(
    groups: list[GroupTexts], expected: Headroom
) -> None:
    assert headroom_from(MEMINFO, groups) == expected


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def limits_v2(path: str, limit: int, usage: int) -> dict[str, str]:
    folder = f"sys/fs/cgroup{path}"
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{usage}\n",
        f"{folder}/memory.stat": "inactive_file 0\n",
    }


def limits_v1(path: str, limit: int, usage: int) -> dict[str, str]:
    folder = f"sys/fs/cgroup/memory{path}"
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{usage}\n",
        f"{folder}/memory.stat": "total_inactive_file 0\n",
    }


def test_a_group_is_bound_by_the_groups_around_it(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/pods/pod/main\n"}
    files |= limits_v2("/pods/pod/main", 8 * GB, GB) | limits_v2("/pods/pod", 5 * GB, 2 * GB)
    assert memory_headroom(write(tmp_path, files)) == Headroom(
        3 * GB, 5 * GB, f"{tmp_path}/sys/fs/cgroup/pods/pod/memory.max"
    )


def test_inside_a_container_the_own_group_is_the_top(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n"} | limits_v2("", 4 * GB, GB)
    assert memory_headroom(write(tmp_path, files)).available_bytes == 3 * GB


def test_version_1_names_a_path_that_only_exists_outside_the_container(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "5:cpu:/docker/abc\n4:memory,hugetlb:/docker/abc\n"} | limits_v1("", 4 * GB, GB)
    assert memory_headroom(write(tmp_path, files)).available_bytes == 3 * GB


def test_without_control_groups_the_machine_decides(tmp_path: Path) -> None:
    assert memory_headroom(write(tmp_path, {})).available_bytes == 10 * GB


def test_this_process_has_some_memory_left() -> None:
    room = memory_headroom()
    assert 0 < room.available_bytes <= room.limit_bytes


def test_what_does_not_fit_is_refused_with_both_numbers() -> None:
    check_fits(GB, Headroom(GB, 2 * GB, "memory.max"))
    with pytest.raises(ArenaTooLarge, match=r"1,073,741,825 bytes but only 1,073,741,824 .* memory\.max") as caught:
        check_fits(GB + 1, Headroom(GB, 2 * GB, "memory.max"))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
