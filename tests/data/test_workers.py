"""Work for several processes."""

import multiprocessing

from minimind_trl.data.workers import default_processes, in_order


def work(_) -> tuple[int, list[int]]:
    return default_processes(), list(in_order(abs, [-1, -2, -3], 2))


def test_results_come_in_order():
    assert list(in_order(abs, [-1, -2, -3], 2)) == [1, 2, 3]


def test_a_worker_of_a_pool_which_may_have_no_children_works_alone():
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map(work, [None]) == [(1, [1, 2, 3])]
